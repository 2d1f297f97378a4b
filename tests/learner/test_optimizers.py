"""Every optimizer steps as its original does on each matrix by itself, and its state fits any mesh and a checkpoint."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as Spec

from grpo_jax.config import GRPOConfig
from grpo_jax.config.optimizer_names import Optimizer
from grpo_jax.learner.optimizer import OPTIMIZERS, abstract_state, init_state, make_optimizer, state_shardings
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.transformer import abstract_params
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.mesh import make_mesh

L, D, N, H, F, V = 2, 6, 2, 4, 5, 7
RATE, DECAY, STEPS = 1e-2, 0.1, 4
BETAS = (0.8, 0.95)
MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def tree(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "embed": {"embedding": make(V, D)},
        "layers": {
            "q": {"kernel": make(L, D, N, H), "bias": make(L, N, H)},
            "o": {"kernel": {"lora_a": make(L, N, H, 3), "lora_b": make(L, 3, D)}},
            "down": {"kernel": make(L, F, D)},
            "input_norm": {"scale": make(L, D)},
        },
        "head": {"kernel": make(D, V)},
    }


IN_TORCH = {  # the rows of each matrix, layers left out; the rest are its columns
    "embed/embedding": V,
    "layers/q/kernel": D,
    "layers/o/kernel/lora_a": N * H,
    "layers/o/kernel/lora_b": 3,
    "layers/down/kernel": F,
    "head/kernel": D,
}


def pieces(params):
    """(path, each matrix or vector as torch has it) for every parameter of every layer."""
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(part.key for part in path)
        for one in x if name.startswith("layers") else [x]:
            yield name, one.reshape(IN_TORCH[name], -1) if name in IN_TORCH else one.reshape(-1)


def ours_after(optim, decay=DECAY, **options):
    params = jax.tree.map(jnp.asarray, tree())
    optimizer = make_optimizer(
        Schedule(RATE, "constant", 0, STEPS), optim=optim, weight_decay=decay, max_grad_norm=0, **options
    )
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        changes, state = update(tree(step + 1), state, params)
        params = optax.apply_updates(params, changes)
    return [(name, np.asarray(x)) for name, x in pieces(params)]


def theirs_after(make):
    """`make(parameter groups)` is an optimizer of torch."""
    import torch

    named = [(name, torch.nn.Parameter(torch.tensor(np.array(x)))) for name, x in pieces(tree())]
    groups = [
        {"params": [x for name, x in named if name.endswith(MATRICES) == decays], "weight_decay": decay}
        for decays, decay in ((True, DECAY), (False, 0.0))
    ]
    optimizer = make(groups)
    for step in range(STEPS):
        for (_, x), (_, grad) in zip(named, pieces(tree(step + 1))):
            x.grad = torch.tensor(np.array(grad))
        optimizer.step()
    return [x.detach().numpy() for _, x in named]


def test_adafactor_steps_as_transformers_trainer_has_it():
    pytest.importorskip("torch")
    from transformers.optimization import Adafactor

    theirs = theirs_after(
        lambda groups: Adafactor(groups, lr=RATE, scale_parameter=False, relative_step=False)
    )
    for (name, found), expected in zip(ours_after("adafactor"), theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_sgd_steps_as_torch():
    torch = pytest.importorskip("torch")
    theirs = theirs_after(lambda groups: torch.optim.SGD(groups, lr=RATE))
    for (name, found), expected in zip(ours_after("sgd"), theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_lion_steps_by_the_sign_of_its_momentum():
    expected, momentum = dict(enumerate(x for _, x in pieces(tree()))), {}
    for step in range(STEPS):
        for i, (name, grad) in enumerate(pieces(tree(step + 1))):
            before = momentum.get(i, np.zeros_like(grad))
            change = np.sign(BETAS[0] * before + (1 - BETAS[0]) * grad)
            momentum[i] = BETAS[1] * before + (1 - BETAS[1]) * grad
            decay = DECAY if name.endswith(MATRICES) else 0
            expected[i] = expected[i] - RATE * (change + decay * expected[i])
    for i, (name, found) in enumerate(ours_after("lion", betas=BETAS)):
        np.testing.assert_allclose(found, expected[i], rtol=1e-5, atol=1e-6, err_msg=name)


def test_muon_orthogonalises_each_matrix_of_a_layer_as_torch_does():
    """Up to the bfloat16 of torch's iteration; what is not a matrix of a layer is left to AdamW."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    starts = [x for _, x in pieces(tree())]
    found = ours_after("muon", decay=0.0)
    for i, (name, after) in enumerate(found):
        moved = (after - starts[i]) / RATE
        if not (name.startswith("layers") and name in IN_TORCH):
            assert np.abs(moved).max() < 2 * STEPS, "AdamW moves each weight by at most about the rate"
            continue
        weight = torch.nn.Parameter(torch.tensor(np.array(starts[i].T)))  # torch's matrices are [out,in]
        theirs = torch.optim.Muon([weight], lr=RATE, weight_decay=0.0)
        for step in range(STEPS):
            weight.grad = torch.tensor(np.array(list(pieces(tree(step + 1)))[i][1].T))
            theirs.step()
        expected = (weight.detach().numpy().T - starts[i]) / RATE
        cosine = (moved * expected).sum() / np.linalg.norm(moved) / np.linalg.norm(expected)
        assert cosine > 0.98, name
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(expected), rel=0.1), name


@pytest.fixture(scope="module")
def updated(tiny, random_params):
    """`updated(optim, sizes)`: (the abstract state, the state after two updates) on such a mesh."""

    @functools.cache
    def run(optim, sizes, compact=False):
        mesh = make_mesh(dict(sizes))
        optimizer = make_optimizer(
            Schedule(RATE, "constant", 0, 9), optim=optim, weight_decay=DECAY, compact=compact, epsilon=1e-3
        )
        layout = state_shardings(abstract_params(tiny), optimizer, mesh)
        params = jax.tree.map(np.asarray, random_params(tiny))

        def steps(params):
            state = init_state(params, optimizer)
            opt_state = state.opt_state
            for step in range(2):
                grads = jax.tree.map(lambda x, n=step: jnp.sin(x * (50 + n)), state.params)
                changes, opt_state = optimizer.update(grads, opt_state, params)
                params = optax.apply_updates(params, changes)
            return state.__class__(params, opt_state, state.updates + 2)

        with jax.set_mesh(mesh):
            return abstract_state(abstract_params(tiny), optimizer, mesh), jax.jit(
                steps, out_shardings=layout
            )(params)

    return run


ONE, EIGHT = (("data", 1),), (("fsdp", 2), ("tensor", 4))


@pytest.mark.parametrize("optim", sorted(set(OPTIMIZERS) - {"adamw"}))
def test_a_mesh_takes_the_same_steps_and_a_checkpoint_moves_between_meshes(updated, tmp_path, optim):
    (abstract, one), (_, eight) = updated(optim, ONE), updated(optim, EIGHT)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, eight)
        checkpoints.wait()
        _, state, _ = checkpoints.restore(abstract)
    assert jax.tree.structure(state) == jax.tree.structure(eight)
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(eight)))


def test_a_state_is_split_as_the_weights_along_the_axes_that_it_shares_with_them(tiny):
    optimizer = make_optimizer(Schedule(RATE, "constant", 0, 9), optim="adafactor", max_grad_norm=0)
    factors = state_shardings(abstract_params(tiny), optimizer, make_mesh(dict(EIGHT))).opt_state[0][0]
    assert factors.rows["layers"]["q"]["kernel"].spec == Spec(None, "fsdp", None, None)
    assert factors.columns["layers"]["q"]["kernel"].spec == Spec(None, None, "tensor", None)
    assert factors.rows["layers"]["q"]["bias"].spec == Spec(None, "tensor", None)


@pytest.mark.parametrize(
    ("optim", "share"), [("adamw", 2), ("lion", 1), ("muon", (1, 2)), ("sgd", 0), ("adafactor", (0, 0.5))]
)
def test_the_memory_of_an_optimizer_is_what_its_state_takes(tiny, optim, share):
    """In parts of the weights: what a plan counts."""
    parts = []
    for compact in (False, True):
        optimizer = make_optimizer(Schedule(RATE, "constant", 0, 9), optim=optim, compact=compact)
        state = abstract_state(abstract_params(tiny), optimizer, make_mesh(dict(ONE)))
        parts.append(bytes_of(state.opt_state) / bytes_of(state.params))
    if isinstance(share, tuple):
        assert share[0] < parts[0] < share[1]
    else:
        assert parts[0] == pytest.approx(share, abs=1e-3)
    assert parts[1] == pytest.approx(parts[0] / 2, abs=1e-3), "in bfloat16"


def test_the_settings_know_every_optimizer():
    assert set(get_args(Optimizer)) == set(OPTIMIZERS)
    assert GRPOConfig().optim == "adamw"
