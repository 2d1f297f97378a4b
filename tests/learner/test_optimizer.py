"""Schedules against transformers, AdamW against torch, and which parameters decay."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.config import GRPOConfig
from grpo_jax.config.checks import SCHEDULE_OPTIONS
from grpo_jax.errors import UserError
from grpo_jax.learner.optimizer import init_state, make_optimizer, state_shardings
from grpo_jax.learner.schedules import KINDS, Schedule


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (0, 1), (1, 1)])
def test_schedules_equal_transformers(kind, warmup, total):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(name, theirs, num_warmup_steps=warmup, num_training_steps=total)
    ours = Schedule(3e-4, kind, warmup, total).build()
    assert_same_rates(ours, theirs, scheduler, total)


def assert_same_rates(ours, optimizer, scheduler, total):
    for update in range(total):
        assert float(ours(update)) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-5, abs=1e-12)
        optimizer.step()
        scheduler.step()


OPTIONS = [
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 4}),
    ("warmup_stable_decay", {"num_decay_steps": 3, "min_lr_ratio": 0.1, "decay_type": "linear"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "num_cycles": 1.5}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 12), (3, 12)])
def test_schedules_with_options_equal_transformers(kind, options, warmup, total):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    given = {"num_warmup_steps": warmup, "num_training_steps": total}
    scheduler = get_scheduler(kind, theirs, **given, scheduler_specific_kwargs=options)
    assert_same_rates(Schedule(3e-4, kind, warmup, total, options).build(), theirs, scheduler, total)


def test_the_settings_know_every_schedule_and_its_options():
    assert KINDS.keys() == SCHEDULE_OPTIONS.keys()
    for kind, function in KINDS.items():
        assert tuple(inspect.signature(function).parameters)[1:] == SCHEDULE_OPTIONS[kind]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1e-7}}, "min_lr is no option of linear; it has none"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_rl": 0}},
            "min_rl is no option of cosine_with_min_lr; it has num_cycles, min_lr, min_lr_rate .*min_lr",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay needs num_decay_steps"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}},
            "power = 'two': must be a number",
        ),
    ],
)
def test_options_that_a_schedule_does_not_have_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        GRPOConfig(**values)


def trees(seed=0):
    """Small parameters with the leaf names that decide over decay."""
    rng = np.random.default_rng(seed)
    make = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "embed": {"embedding": make(5, 3)},
        "layers": {"q": {"kernel": make(2, 3, 2), "bias": make(2, 2)}, "input_norm": {"scale": make(2, 3)}},
        "norm": {"scale": make(3)},
        "head": {"kernel": make(3, 5)},
    }


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0, 1e3])
def test_steps_equal_torch_with_clipping_and_decay(max_grad_norm):
    """The gradients' norm is about 7: clipped by 1, left alone by 1000 and by 0."""
    torch = pytest.importorskip("torch")
    params = trees()
    decays = lambda path: path[-1].key in ("kernel", "embedding")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = [torch.nn.Parameter(torch.tensor(x)) for _, x in leaves]
    groups = [
        {"params": [w for w, (path, _) in zip(weights, leaves) if decays(path) == yes], "weight_decay": decay}
        for yes, decay in ((True, 0.1), (False, 0.0))
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    ours = make_optimizer(
        Schedule(1e-2, "constant", 0, 3),
        betas=(0.8, 0.95),
        epsilon=1e-6,
        weight_decay=0.1,
        max_grad_norm=max_grad_norm,
    )
    state = ours.init(params)
    for step in range(3):
        grads = trees(seed=step + 1)
        for weight, grad in zip(weights, jax.tree.leaves(grads)):
            weight.grad = torch.tensor(grad)
        if max_grad_norm:
            assert torch.nn.utils.clip_grad_norm_(weights, max_grad_norm) > 5
        theirs.step()
        changes, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, changes)
    for weight, found in zip(weights, jax.tree.leaves(params)):
        np.testing.assert_allclose(found, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_biases_and_norms_do_not(tiny, random_params, tied):
    import dataclasses

    params = random_params(dataclasses.replace(tiny, tie_word_embeddings=tied))
    optimizer = make_optimizer(Schedule(0.1, "constant", 0, 1), weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = jax.jit(lambda p: optimizer.update(zeros, optimizer.init(p), p))(params)
    moved = {
        "/".join(key.key for key in path): bool(np.any(change))
        for path, change in jax.tree_util.tree_leaves_with_path(changes)
    }
    still = {"layers/q/bias", "layers/k/bias", "layers/v/bias", "norm/scale"}
    still |= {"layers/input_norm/scale", "layers/post_norm/scale"}
    assert {name for name, moves in moved.items() if not moves} == still
    assert len(moved) == 14 + (not tied)


def test_a_rate_of_zero_at_the_first_warm_up_step_moves_nothing():
    params = trees()
    optimizer = make_optimizer(Schedule(0.1, "linear", 2, 10), weight_decay=0.5)
    state = optimizer.init(params)
    first, state = optimizer.update(trees(1), state, params)
    second, _ = optimizer.update(trees(1), state, params)
    assert not any(np.any(x) for x in jax.tree.leaves(first))
    assert all(np.any(x) for x in jax.tree.leaves(second))


def test_moments_are_sharded_as_their_parameters(tiny):
    from grpo_jax.models.transformer import abstract_params
    from grpo_jax.sharding.mesh import make_mesh
    from grpo_jax.sharding.rules import TRAIN_RULES, shardings

    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    params = abstract_params(tiny)
    optimizer = make_optimizer(Schedule(0.1, "linear", 2, 10), weight_decay=0.5)
    found = state_shardings(params, optimizer, mesh)
    wanted = shardings(params, TRAIN_RULES, mesh)
    assert found.params == wanted
    moments = [
        x for x in jax.tree.leaves(found.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")
    ]
    assert len(moments) == 1
    assert moments[0].mu == moments[0].nu == wanted
    state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    assert jax.tree.structure(state) == jax.tree.structure(found)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
