"""The compiled step: the same whatever the split and the order, donated, compiled once, and learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.logprobs import LogprobSettings, make_rows
from grpo_jax.learner.losses import CLIPPED
from grpo_jax.learner.objective import GRPO, SFT, Batch
from grpo_jax.learner.optimizer import init_state, make_optimizer, state_shardings
from grpo_jax.learner.schedules import Schedule
from grpo_jax.learner.update import accumulate, make_score, make_update, read, split
from grpo_jax.models.transformer import abstract_params

B, TP, TC, REAL = 8, 4, 6, 37
COMPLETIONS = np.array([6, 1, 3, 0, 6, 2, 5, 4])  # row 3 is wholly masked
LOGPROB_SETTINGS = LogprobSettings(num_tokens=REAL, chunk=32)
EVERYTHING = GRPO(
    "dapo",
    beta=0.1,
    level="sequence",
    delta=2.0,
    bonus=EntropyBonus(0.05),
    top_entropy_quantile=0.4,
    off_policy_threshold=0.0,
    sampler_mode="sequence_truncate",
)


@pytest.fixture(autouse=True)
def _mesh_set(one_device):
    """Every program here runs on the mesh of one device."""


@pytest.fixture(scope="module")
def batch(tiny, tiny_params, mesh_1):
    """Rows with old, reference and sampler log-probs near the current ones, so that some ratios are clipped."""
    rng = np.random.default_rng(0)
    tokens = lambda width: jnp.asarray(rng.integers(0, REAL, (B, width)), jnp.int32)
    mask = (np.arange(TC) < COMPLETIONS[:, None]).astype(np.float32)
    rows = make_rows(tokens(TP), jnp.asarray([4, 1, 2, 3, 4, 2, 1, 3]), tokens(TC), jnp.asarray(mask))
    now = np.asarray(score(tiny, mesh_1)(tiny_params, rows))
    near = lambda spread: jnp.asarray(now + rng.normal(0, spread, now.shape) * mask, jnp.float32)
    return Batch(
        rows,
        jnp.asarray(rng.normal(size=B), jnp.float32),
        sampler_logprobs=near(0.01),
        old_logprobs=near(0.3),
        ref_logprobs=near(0.5),
        mean_tokens=jnp.float32(31),
    )


def gradients(tiny, params, batch, objective, parts=1, logprob_settings=LOGPROB_SETTINGS):
    """(gradients, metrics) of a whole mini-batch."""
    return jax.tree.map(np.asarray, compiled(tiny, objective, logprob_settings, parts)(params, batch)[:2])


@functools.cache
def compiled(cfg, objective, logprob_settings, parts):
    return jax.jit(functools.partial(accumulate, cfg, objective, logprob_settings, parts))


score = functools.cache(lambda cfg, mesh, parts=1: make_score(cfg, LOGPROB_SETTINGS, parts, mesh))


def objective_of(kind):
    return GRPO(kind, beta=0.1, max_length=TC)


def assert_same(ours, theirs, relative=1e-5, metric=1e-6):
    """Gradients to 1e-5 of their tensor's largest, metrics to 1e-6."""
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0])):
        assert np.abs(a - b).max() <= relative * np.abs(b).max()
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        assert ours[1][name] == pytest.approx(value, rel=metric, abs=metric), name


# ---- splits and order


@pytest.mark.parametrize(("kind", "parts"), [("bnpo", 4), ("dapo", 4), ("vespo", 8)])
def test_micro_batches_change_no_gradient_or_metric(tiny, tiny_params, batch, kind, parts):
    """They have different row lengths, so a mean of means would give another loss. With KL and old log-probs. Rows are
    weighted before the split, so no other loss needs a program here: test_losses.py holds that each is of its row."""
    objective = objective_of(kind)
    whole = gradients(tiny, tiny_params, batch, objective)
    if kind in CLIPPED:
        assert whole[1]["clip_ratio/region_mean"] > 0
    assert whole[1]["kl"] > 0.01
    # VESPO raises the ratio of a whole row to a power of 2 or 3: it multiplies the rounding of each log-prob.
    metric = 1e-5 if kind == "vespo" else 1e-6
    assert_same(gradients(tiny, tiny_params, batch, objective, parts), whole, metric=metric)


def test_micro_batches_change_no_gradient_or_metric_with_all_settings_on(tiny, tiny_params, batch):
    """The tokens of highest entropy are those of the whole mini-batch, and so is the mean of the bonus."""
    whole = gradients(tiny, tiny_params, batch, EVERYTHING)
    assert 0 < whole[1]["off_policy_dropped"] < 1
    assert whole[1]["entropy"] > 1
    assert_same(gradients(tiny, tiny_params, batch, EVERYTHING, 4), whole)


def test_leaving_out_rows_without_advantage_changes_no_gradient(tiny, tiny_params, batch):
    """Rows 0 to 3 of 4 micro-batches of two carry gradient: the other two micro-batches are not computed. (That a row
    without advantage has no gradient in any loss is in test_losses.py.)"""
    quiet = dataclasses.replace(batch, advantages=batch.advantages.at[jnp.asarray([2, 3, 6, 7])].set(0.0))
    quiet = dataclasses.replace(quiet, ref_logprobs=None)
    objective = dataclasses.replace(objective_of("dapo"), beta=0.0)
    ending = lambda end: dataclasses.replace(quiet, ends=np.array([end], np.int32))
    whole = gradients(tiny, tiny_params, quiet, objective, 4)
    fewer = gradients(tiny, tiny_params, ending(2), objective, 4)
    of_all = lambda metrics: {k: v for k, v in metrics.items() if not k.startswith("sampling")}
    assert_same((fewer[0], of_all(fewer[1])), (whole[0], of_all(whole[1])))
    none = gradients(tiny, tiny_params, ending(0), objective, 4)
    assert not any(np.any(x) for x in jax.tree.leaves(none[0]))


def test_order_of_rows_changes_nothing(tiny, tiny_params, batch):
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: np.asarray(x)[order] if x.ndim else x, batch)
    ours, theirs = (gradients(tiny, tiny_params, b, objective_of("dapo"), 4) for b in (shuffled, batch))
    assert_same(ours, theirs)


def test_split_takes_each_row_once_and_scores_come_back_in_order(tiny, tiny_params, batch, mesh_1):
    parts = split({"x": jnp.arange(8), "scalar": jnp.float32(2)}, 4)
    assert sorted(np.asarray(parts["x"]).ravel()) == list(range(8))
    assert parts["x"].shape == (4, 2)
    np.testing.assert_array_equal(parts["scalar"], [2] * 4)
    scores = [score(tiny, mesh_1, parts)(tiny_params, batch.rows) for parts in (1, 4)]
    np.testing.assert_allclose(*scores, atol=5e-6)


def test_padding_changes_no_gradient_or_metric(tiny, tiny_params, batch):
    """Other tokens behind the end, wider padding, and no NaN from a row without any token."""
    rows = batch.rows
    tokens, lengths, completions, mask = map(
        np.asarray, (rows.tokens, rows.prompt_lengths, rows.completions, rows.mask)
    )
    other = np.where(mask == 0, 0, completions)
    prompts = jnp.asarray(np.where(np.arange(TP) < lengths[:, None], tokens[:, :TP], 0))
    wide = lambda x: jnp.asarray(np.pad(x, [(0, 0), (0, 3)]))
    again = dataclasses.replace(
        batch,
        rows=make_rows(prompts, rows.prompt_lengths, wide(other), wide(mask)),
        sampler_logprobs=wide(batch.sampler_logprobs),
        old_logprobs=wide(batch.old_logprobs),
        ref_logprobs=wide(batch.ref_logprobs),
    )
    ours, theirs = (gradients(tiny, tiny_params, b, objective_of("dapo")) for b in (again, batch))
    assert_same(ours, theirs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours))


def test_remat_and_entropy_change_no_gradient(tiny, tiny_params, batch):
    plain = gradients(tiny, tiny_params, batch, objective_of("dapo"))
    logprob_settings = dataclasses.replace(LOGPROB_SETTINGS, remat="none", entropy=True)
    other = gradients(tiny, tiny_params, batch, objective_of("dapo"), logprob_settings=logprob_settings)
    assert 1 < other[1].pop("entropy") < np.log(REAL)
    assert_same(other, plain)


# ---- whole updates


def trainer(tiny, params, mesh, objective, rate=1e-3):
    """A fresh state (copied: it will be donated) and the compiled update."""
    optimizer, sharding, update = program(tiny, mesh, objective, rate)
    return jax.device_put(init_state(jax.tree.map(np.array, params), optimizer), sharding), update


@functools.cache
def program(cfg, mesh, objective, rate):
    """Of the update over two micro-batches, with its optimizer and the state's shardings."""
    optimizer = make_optimizer(Schedule(rate, "constant", 0, 10))
    sharding = state_shardings(abstract_params(cfg), optimizer, mesh)
    return optimizer, sharding, make_update(cfg, objective, LOGPROB_SETTINGS, optimizer, 2, sharding, mesh)


def test_state_is_donated_compiled_once_and_counted(tiny, tiny_params, batch, mesh_1):
    advantages = np.asarray(batch.advantages)
    first, update = trainer(tiny, tiny_params, mesh_1, GRPO())
    state, before = first, update.compilations
    for step in range(3):
        given = Batch(batch.rows, jnp.asarray(advantages * (step + 1)))
        state, _ = update(state, given)
    assert all(x.is_deleted() for x in jax.tree.leaves(first)), "the old state's memory must be given back"
    assert not any(x.is_deleted() for x in jax.tree.leaves((state, given)))
    assert int(state.updates) == 3
    assert update.compilations == max(before, 1)
    state, _ = update(state, jax.tree.map(lambda x: x[: B // 2], given))
    assert update.compilations == max(before, 1) + 1


def test_only_the_first_of_several_updates_has_ratio_one(tiny, tiny_params, batch, mesh_1):
    """Old log-probs recorded before the first update stay while the weights move; recomputed ones would hold the
    ratio at 1 for ever, and clip nothing."""
    recorded = score(tiny, mesh_1)(tiny_params, batch.rows)
    stored = Batch(batch.rows, batch.advantages, sampler_logprobs=recorded, old_logprobs=recorded)
    state, update = trainer(tiny, tiny_params, mesh_1, GRPO("bnpo"), rate=1e-2)
    state, first = update(state, stored)
    _, second = update(state, stored)
    mask = np.asarray(batch.rows.mask)
    wanted = -(np.asarray(batch.advantages)[:, None] * mask).sum() / mask.sum()
    assert float(first["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert first["clip_ratio/region_mean"] == 0
    assert first["sampling/sampling_logp_difference/max"] < 1e-5
    assert second["loss"] < first["loss"] - 0.01
    assert second["clip_ratio/region_mean"] > 0
    assert second["sampling/sampling_logp_difference/max"] > 0.1


def test_absent_old_logprobs_equal_recorded_ones_on_the_first_update(tiny, tiny_params, batch, mesh_1):
    recorded = score(tiny, mesh_1)(tiny_params, batch.rows)
    bare, stored = (dataclasses.replace(batch, old_logprobs=old) for old in (None, recorded))
    ours, theirs = (gradients(tiny, tiny_params, b, objective_of("dapo")) for b in (bare, stored))
    assert_same(ours, theirs)


def test_updates_make_good_completions_likelier_and_bad_ones_rarer(tiny, tiny_params, batch, mesh_1):
    now = lambda state: np.asarray(score(tiny, mesh_1)(state.params, batch.rows)).sum(1)
    state, update = trainer(tiny, tiny_params, mesh_1, GRPO())
    state, metrics = update(state, Batch(batch.rows, jnp.zeros(B)))
    assert metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params)  # nothing to learn, nothing moved

    before, signs = now(state), jnp.asarray([1.0, -1.0] * (B // 2))
    for _ in range(3):
        state, metrics = update(state, Batch(batch.rows, signs))
    change = now(state) - before
    assert change[::2].min() > 0
    assert change[[1, 5, 7]].max() < 0  # row 3 has no token
    assert metrics["grad_norm"] > 0


def test_the_divergence_pulls_the_policy_back_to_the_reference(tiny, tiny_params, batch, mesh_1):
    still = dataclasses.replace(batch, advantages=jnp.zeros(B), old_logprobs=None)
    state, update = trainer(tiny, tiny_params, mesh_1, GRPO("dapo", beta=0.5))
    divergences = []
    for _ in range(3):
        state, metrics = update(state, still)
        divergences.append(float(metrics["kl"]))
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[2] < 0.95 * divergences[0]


def test_supervised_updates_lower_the_loss(tiny, tiny_params, batch, mesh_1):
    state, update = trainer(tiny, tiny_params, mesh_1, SFT(), rate=3e-3)
    losses = []
    for _ in range(4):
        state, metrics = update(state, Batch(batch.rows, jnp.zeros(B)))
        losses.append(float(metrics["loss"]))
        assert metrics["nll"] == pytest.approx(losses[-1], rel=1e-6)
    assert losses == sorted(losses, reverse=True)


def test_half_precision_computes_in_half_and_gives_float32_gradients(tiny, tiny_params, batch, mesh_1):
    logprob_settings = dataclasses.replace(LOGPROB_SETTINGS, dtype="bfloat16")
    half = gradients(tiny, tiny_params, batch, objective_of("dapo"), logprob_settings=logprob_settings)
    full = gradients(tiny, tiny_params, batch, objective_of("dapo"))
    assert {x.dtype for x in jax.tree.leaves(half[0])} == {np.dtype("float32")}
    norm = lambda tree: np.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in jax.tree.leaves(tree)))
    gap = norm(jax.tree.map(np.subtract, half[0], full[0])) / norm(full[0])
    assert 1e-4 < gap < 0.1


def test_a_gradient_that_is_not_finite_raises_a_user_error():
    with pytest.raises(UserError, match="gradient is not finite"):
        read({"loss": jnp.float32(1.0), "grad_norm": jnp.float32(np.nan)})
    assert read({"loss": jnp.float32(1.0), "grad_norm": jnp.float32(2.0)}) == {"loss": 1.0, "grad_norm": 2.0}
