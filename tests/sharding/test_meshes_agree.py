"""One device, or eight in any arrangement: the same tokens, losses, gradients and updated parameters (float32)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.logprobs import LogprobSettings, make_rows
from grpo_jax.learner.objective import GRPO, Batch
from grpo_jax.learner.optimizer import init_state, make_optimizer, state_shardings
from grpo_jax.learner.schedules import Schedule
from grpo_jax.learner.update import make_update
from grpo_jax.rollout.programs import Vocabulary, make_generate
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, everywhere, make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings

P, G, TP, TC, REAL = 8, 2, 5, 6, 37
ONE = {"data": 1}
EIGHT = [{"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
LOGPROB_SETTINGS = LogprobSettings(num_tokens=REAL, chunk=48)
BONUS = EntropyBonus(0.01, adaptive=True, target=100.0)
OBJECTIVE = GRPO("dapo", beta=0.1, max_length=TC, bonus=BONUS)

# Adam divides each gradient by its own size: an element whose gradient is nearly zero takes a step of up to the
# whole rate, in a direction that is rounding noise. A large epsilon keeps such steps as small as their gradients,
# so that parameters can be compared to 1e-5 like everything else. (For the same reason biases start away from 0.)
OPTIMIZER = make_optimizer(Schedule(1e-2, "constant", 0, 10), epsilon=1e-2, weight_decay=0.01)


@pytest.fixture(scope="module")
def on_mesh(tiny, tiny_params):
    """`on_mesh(sizes)`: a rollout and two updates on it, on that mesh; each made once."""
    prompts = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)
    lengths = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)

    @functools.cache
    def run(*sizes):
        mesh = make_mesh(dict(sizes))
        with jax.set_mesh(mesh):
            put = functools.partial(hosts.put, sharding=by_rows(mesh))
            rollout = generated(tiny, tiny_params, mesh, put, prompts, lengths)
            return rollout, *updated(tiny, tiny_params, mesh, batch_of(rollout, prompts, lengths, put, mesh))

    return lambda sizes: run(*sizes.items())


def generated(tiny, params, mesh, put, prompts, lengths):
    params = jax.device_put(params, shardings(params, ROLLOUT_RULES, mesh))
    generate = make_generate(tiny, Vocabulary((3, 5), 0, REAL), SamplingParams(top_p=0.95), G, TC, mesh)
    key = jax.random.key(1)
    rollout = generate(params, put(prompts), put(lengths), put(np.arange(P, dtype=np.uint32)), key)
    assert rollout.tokens.sharding.is_equivalent_to(by_rows(mesh), 3)
    return jax.tree.map(hosts.get, rollout)


def batch_of(rollout, prompts, lengths, put, mesh):
    flat = lambda x: x.reshape(P * G, *x.shape[2:])
    rng = np.random.default_rng(2)
    mask = (np.arange(TC) < flat(rollout.lengths)[:, None]).astype(np.float32)
    near = lambda spread: put(
        (flat(rollout.logprobs) + spread * mask * rng.normal(size=mask.shape)).astype("f4")
    )
    rows = make_rows(
        jnp.asarray(prompts.repeat(G, 0)),
        jnp.asarray(lengths.repeat(G)),
        flat(rollout.tokens),
        jnp.asarray(mask),
    )
    return Batch(
        jax.tree.map(lambda x: put(np.asarray(x)), rows),
        put(rng.normal(size=P * G).astype(np.float32)),
        sampler_logprobs=put(flat(rollout.logprobs)),
        old_logprobs=near(0.2),
        ref_logprobs=near(0.4),
        mean_tokens=hosts.put(np.float32(50), everywhere(mesh)),
    )


def updated(tiny, params, mesh, batch):
    """Parameters, moments (of the gradients) and metrics after two updates of two micro-batches each."""
    sharding = state_shardings(params, OPTIMIZER, mesh, BONUS)
    state = jax.device_put(init_state(jax.tree.map(jnp.copy, params), OPTIMIZER, BONUS), sharding)
    update = make_update(tiny, OBJECTIVE, LOGPROB_SETTINGS, OPTIMIZER, 2, sharding, mesh)
    state, first = update(state, batch)
    state, second = update(state, batch)
    assert update.compilations == 1
    assert jax.tree.map(lambda x: x.sharding, state) == sharding
    return (
        jax.tree.map(np.asarray, state.params),
        jax.tree.map(np.asarray, state.opt_state),
        [{name: float(value) for name, value in metrics.items()} for metrics in (first, second)],
    )


def assert_close(ours, theirs):
    """To 1e-5 of each tensor's largest element."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), path


@pytest.mark.parametrize("sizes", EIGHT, ids=lambda sizes: ",".join(f"{k}={v}" for k, v in sizes.items()))
def test_eight_devices_compute_the_same_as_one(on_mesh, sizes, tiny_params):
    rollout, params, moments, metrics = on_mesh(sizes)
    wanted_rollout, wanted_params, wanted_moments, wanted_metrics = on_mesh(ONE)
    np.testing.assert_array_equal(rollout.tokens, wanted_rollout.tokens)
    np.testing.assert_array_equal(rollout.lengths, wanted_rollout.lengths)
    np.testing.assert_allclose(rollout.logprobs, wanted_rollout.logprobs, atol=2e-6)
    assert 0 < rollout.finished.sum() < rollout.finished.size

    assert_close(params, wanted_params)
    assert_close(moments, wanted_moments)
    for ours, theirs in zip(metrics, wanted_metrics):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            # The sampler's log-probs are held to 2e-6 above, and this is a difference of two.
            near = 4e-6 if name.startswith("sampling/") else 1e-6
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=near), name
    assert metrics[1]["loss"] < metrics[0]["loss"]
    assert metrics[1]["entropy_coef"] == pytest.approx(0.02)


def test_weights_are_split_over_the_devices(tiny, tiny_params):
    """Eight copies would agree too."""
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    laid = jax.device_put(tiny_params, shardings(tiny_params, TRAIN_RULES, mesh))
    gate = laid["layers"]["gate"]["kernel"]
    assert {shard.data.size for shard in gate.addressable_shards} == {gate.size // 8}
