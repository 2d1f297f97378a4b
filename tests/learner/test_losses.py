"""The pieces of the objective by hand, and what must hold for every objective: masks, extremes, the first update."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import LOSSES, MAX_LENGTH, TC, B, batch_of, ours, random_case

from grpo_jax.learner.corrections import MODES, off_policy_mask, sampler_ratio
from grpo_jax.learner.divergences import ESTIMATORS, k3
from grpo_jax.learner.entropy import EntropyBonus, high_entropy_mask
from grpo_jax.learner.losses import (
    bounded_product,
    cispo_loss,
    clipped_loss,
    importance_ratio,
    masked_gap,
    sapo_loss,
    vespo_weight,
)
from grpo_jax.learner.normalization import KINDS, row_weights
from grpo_jax.learner.objective import GRPO, SFT

ALL = (*LOSSES, "reinforce")
LEVELS = ("token", "sequence", "trajectory")
EVERYTHING = {
    "level": "sequence",
    "delta": 2.0,
    "bonus": EntropyBonus(0.05),
    "top_entropy_quantile": 0.4,
    "off_policy_threshold": 0.0,
    "sampler_mode": "token_truncate",
}
TRAJECTORY = {"level": "trajectory", "kl_estimator": "k2", "sampler_mode": "sequence_mask"}


def objective_of(loss_type, **settings) -> GRPO:
    cap = 1.1 if loss_type == "cispo" else 0.3
    return replace(GRPO(loss_type, 0.2, cap, beta=0.1, max_length=MAX_LENGTH), **settings)


# ---- ratios and losses


def test_the_ratio_is_exact_and_is_one_under_the_mask():
    case = random_case(0)
    gap = masked_gap(case.logprobs, case.old, case.mask)
    wanted = np.where(case.mask > 0, np.exp(case.logprobs.astype(np.float64) - case.old), 1.0)
    np.testing.assert_allclose(importance_ratio(gap, case.mask), wanted, rtol=1e-6)


def test_sequence_level_averages_log_ratios_and_trajectory_level_adds_them():
    gap, mask = jnp.asarray([[0.1, 0.3, 0.0], [0.0, 0.0, 0.0]]), jnp.asarray([[1.0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(importance_ratio(gap, mask, "sequence"), [[math.exp(0.2)], [1]], rtol=1e-6)
    np.testing.assert_allclose(importance_ratio(gap, mask, "trajectory"), [[math.exp(0.4)], [1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.19, 2.0, -2.38, -2.0),
        (1.31, 2.0, -2.6, 0.0),  # good and already likelier: held at 1 + eps_high
        (0.5, 2.0, -1.0, -2.0),  # good and become rarer: pulled back in full
        (1.31, -2.0, 2.62, 2.0),  # bad and become likelier: pushed down in full
        (0.5, -2.0, 1.6, 0.0),  # bad and already rarer: held at 1 - eps_low
        (0.81, -2.0, 1.62, 2.0),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_stops_only_ratios_past_the_bound_their_advantage_favours(ratio, advantage, loss, slope):
    f = lambda r: clipped_loss(r[None, None], jnp.asarray([[advantage]]), 0.2, 0.3)[0, 0]
    value, gradient = jax.value_and_grad(f)(jnp.float32(ratio))
    assert value == pytest.approx(loss, rel=1e-6)
    assert gradient == pytest.approx(slope, rel=1e-6)


def test_delta_bounds_the_loss_of_a_negative_advantage():
    f = lambda r: clipped_loss(r[None, None], jnp.asarray([[-2.0]]), 0.2, 0.3, delta=1.5)[0, 0]
    values = [jax.value_and_grad(f)(jnp.float32(r)) for r in (1.4, 9.0)]
    assert [(round(float(v), 5), float(slope)) for v, slope in values] == [(2.8, 2.0), (3.0, 0.0)]


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    """The bound is epsilon_high itself, and not 1 + epsilon_high."""
    f = lambda x: cispo_loss(jnp.asarray([[0.5, 5.0, 50.0]]), jnp.asarray([[2.0]]), x, 5.0).sum()
    np.testing.assert_allclose(jax.grad(f)(jnp.full((1, 3), -1.0)), [[-1.0, -10.0, -10.0]])


def test_sapo_is_the_policy_gradient_at_ratio_one_and_fades_with_distance():
    for advantage, tau in ((2.0, 1.0), (-2.0, 1.05), (0.0, 1.05)):
        f = lambda r, a=advantage: sapo_loss(r, jnp.asarray([[a]]), 1.0, 1.05)[0, 0]
        value, slope = jax.value_and_grad(f)(jnp.ones((1, 1)))
        assert value == pytest.approx(-advantage * 2 / tau, rel=1e-6)
        assert slope == pytest.approx(-advantage, rel=1e-6)
        assert abs(float(jax.grad(f)(jnp.full((1, 1), 9.0))[0, 0])) < 0.01


def test_vespo_weight_is_one_at_equality_and_zero_far_away():
    mask, A = jnp.ones((2, 4)), jnp.asarray([[1.0], [-1.0]])
    weigh = lambda gap, **more: vespo_weight(gap * mask, A, mask, (2.0, 3.0), (3.0, 2.0), **more)[:, 0]
    np.testing.assert_allclose(weigh(0.0), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(weigh(5.0), [0, 0])
    np.testing.assert_allclose(weigh(-500.0), [0, 0], atol=1e-10)
    w = math.exp(0.4)  # of four tokens
    np.testing.assert_allclose(
        weigh(0.1), [math.exp(3 - 3 * w) * w**2, math.exp(2 - 2 * w) * w**3], rtol=1e-5
    )
    per_token, per_row = jnp.full((2, 4), math.exp(0.1)), jnp.full((2, 1), math.exp(0.4))
    for correction in (per_token, per_row):
        np.testing.assert_allclose(weigh(0.0, correction=correction), weigh(0.1), rtol=1e-5)


# ---- divergences


@pytest.mark.parametrize("name", ESTIMATORS)
def test_divergences_are_exact_and_zero_at_equality(name):
    case = random_case(0)
    gap = np.where(case.mask > 0, case.ref.astype(np.float64) - case.logprobs, 0.0)
    wanted = {"k1": -gap, "k2": gap**2 / 2, "k3": np.exp(gap) - gap - 1}[name]
    np.testing.assert_allclose(
        ESTIMATORS[name](case.logprobs, case.ref, case.mask), wanted, rtol=1e-4, atol=1e-7
    )
    assert not np.any(ESTIMATORS[name](case.logprobs, case.logprobs, case.mask))


def test_k3_of_nearly_equal_policies_is_accurate_in_float32():
    """exp(x) - x - 1 in float32 is noise below x = 1e-3, negative half the time."""
    gap = np.float32([1e-2, 1e-3, -1e-3, 3e-4])
    found = k3(jnp.zeros((1, 4)), gap[None], jnp.ones((1, 4)))[0]
    assert (np.asarray(found) >= 0).all()
    np.testing.assert_allclose(found, np.expm1(gap.astype(np.float64)) - gap, rtol=1e-3)


def test_the_bias_corrected_divergence_has_the_gradient_of_the_exact_one():
    """Over all tokens of a distribution, sampled by old weights: the mean of r k is KL(policy, reference) for k1
    and k3, and so is the gradient; without r it is another quantity."""
    logits, old, ref = (jnp.asarray(np.random.default_rng(i).normal(size=5), jnp.float32) for i in range(3))
    logp = lambda x: jax.nn.log_softmax(x)[None]
    exact = lambda x: (jnp.exp(logp(x)) * (logp(x) - logp(ref))).sum()
    for name in ("k1", "k3"):
        estimate = lambda x, name=name: ESTIMATORS[name](logp(x), logp(ref), jnp.ones((1, 5)))
        corrected = lambda x, f=estimate: bounded_product(f(x), jnp.exp(logp(x) - logp(old)))
        mean = lambda x, f=corrected: (jnp.exp(logp(old)) * f(x)).sum()
        assert mean(logits) == pytest.approx(float(exact(logits)), rel=1e-5)
        np.testing.assert_allclose(jax.grad(mean)(logits), jax.grad(exact)(logits), atol=1e-6)


# ---- masks of rows and tokens


def test_the_sampler_correction_truncates_or_masks_ratios_outside_its_bounds():
    gap = jnp.log(jnp.asarray([[0.5, 1.0, 4.0]]))
    ratio = lambda mode, *bounds: np.asarray(sampler_ratio(gap, 0 * gap, jnp.ones((1, 3)), mode, *bounds))
    np.testing.assert_allclose(ratio("none", 0.8, 3.0), [[0.5, 1, 4]], rtol=1e-6)
    np.testing.assert_allclose(ratio("token_truncate", 0.8, 3.0), [[0.8, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(ratio("token_truncate", None, 3.0), [[0.5, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(ratio("token_mask", 0.8, 3.0), [[0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(ratio("token_mask", None, 3.0), [[0.5, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(ratio("sequence_truncate", None, 1.5), [[1.5]], rtol=1e-6)
    np.testing.assert_allclose(ratio("sequence_mask", None, 1.5), [[0]])
    np.testing.assert_allclose(ratio("sequence_mask", None, None), [[2]], rtol=1e-6)


def test_only_bad_completions_far_from_the_policy_are_dropped():
    logprobs, sampler = jnp.full((4, 2), -2.0), jnp.asarray([[-1.0, -1.0], [-2.0, -2.0]] * 2)
    kept = off_policy_mask(
        jnp.asarray([[0.0], [1.0], [-1.0], [-1.0]]), logprobs, sampler, jnp.ones((4, 2)), 0.5
    )
    np.testing.assert_array_equal(kept[:, 0], [1, 1, 0, 1])


def test_high_entropy_mask_selects_the_top_share_of_unmasked_tokens():
    entropy = jnp.asarray([[1.0, 5.0, 3.0, 9.0], [2.0, 4.0, 9.0, 9.0]])
    mask = jnp.asarray([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    chosen = np.asarray(high_entropy_mask(entropy, mask, 0.4))  # two of five
    np.testing.assert_array_equal(chosen, [[0, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(high_entropy_mask(entropy, mask, 1.0), mask)
    assert not np.any(high_entropy_mask(entropy, 0 * mask, 0.4))


def test_tokens_of_equal_entropy_are_all_selected():
    """A threshold between two equal numbers that is rounded up leaves out both, and nothing is learned."""
    for seed, quantile in itertools.product(range(20), (0.2, 0.37, 0.8)):
        same = jnp.full((3, 4), np.random.default_rng(seed).uniform(0.1, 3), jnp.float32)
        assert np.all(high_entropy_mask(same, jnp.ones((3, 4)), quantile))


# ---- weights of rows


def test_row_weights_equal_those_worked_out_by_hand():
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    weigh = lambda kind, **more: np.asarray(row_weights(jnp.asarray(mask), kind, 5, **more))
    for kind in ("grpo", "sapo"):  # a row's mean, then the mean of three
        np.testing.assert_allclose(weigh(kind), [1 / 9, 1 / 3, 1 / 3])
    for kind in ("luspo", "reinforce"):
        np.testing.assert_allclose(weigh(kind), [1 / 3] * 3)
    np.testing.assert_allclose(weigh("bnpo"), [1 / 4] * 3)
    np.testing.assert_allclose(weigh("dr_grpo"), [1 / 15] * 3)
    for kind in ("dapo", "cispo", "vespo"):
        np.testing.assert_allclose(weigh(kind, mean_tokens=jnp.float32(8)), [1 / 8] * 3)
        np.testing.assert_allclose(weigh(kind, mean_tokens=jnp.float32(0.5)), [2] * 3)
        np.testing.assert_allclose(weigh(kind), [1 / 4] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_batch_without_tokens_are_finite(kind):
    for mean_tokens in (None, jnp.float32(0)):
        assert np.isfinite(row_weights(jnp.zeros((3, 4)), kind, 5, mean_tokens)).all()


# ---- masked places


POISONS = np.array([np.nan, 1e4, np.inf, -1e4, -np.inf], np.float32)


def poisoned(case, first=0):
    """The case with all poisons in turn wherever the mask is 0, another one in each array, and with poison `first` as
    the advantage of rows without a token."""
    turn = first + np.arange(B * TC).reshape(B, TC)
    under = lambda x, shift=0: np.where(case.mask == 0, POISONS[(turn + shift) % len(POISONS)], x)
    by_row = lambda x: np.where(case.mask.any(1), x, POISONS[first])
    advantages = (under if case.advantages.ndim == 2 else by_row)(case.advantages)
    names = ("logprobs", "old", "ref", "sampler", "entropy")
    arrays = {name: under(getattr(case, name), shift) for shift, name in enumerate(names)}
    return replace(case, advantages=advantages, **arrays)


SETTINGS = {"plain": {}, "everything": EVERYTHING, "trajectory": TRAJECTORY}


@pytest.mark.parametrize("which", SETTINGS)
@pytest.mark.parametrize("loss_type", ALL)
def test_nothing_under_the_mask_reaches_value_gradient_or_metric(loss_type, which):
    """Padding scored as minus infinity, stale log-probs, an empty row: none of it changes anything. Advantages are of
    rows and of tokens in turn."""
    objective, clean = objective_of(loss_type, **SETTINGS[which]), random_case(4)
    if (ALL.index(loss_type) + list(SETTINGS).index(which)) % 2:
        clean = replace(clean, advantages=np.random.default_rng(0).normal(0, 1, (B, TC)).astype(np.float32))
    wanted, _ = ours(objective, clean)
    assert wanted.by_logprobs[clean.mask > 0].any()
    assert np.isfinite(list(wanted.metrics.values())).all()
    for first in (0, 1):
        found, _ = ours(objective, poisoned(clean, first))
        assert found.loss == wanted.loss
        assert found.metrics == wanted.metrics
        for name in ("by_logprobs", "by_entropy"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
            assert not getattr(found, name)[clean.mask == 0].any()


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("loss_type", ALL)
def test_a_wholly_masked_batch_is_zero_and_not_nan(loss_type, settings):
    """Its metrics are finite too: a log cannot hold infinity."""
    case = replace(random_case(0), mask=np.zeros((B, TC), np.float32))
    for which in (case, poisoned(case)):
        found, _ = ours(objective_of(loss_type, **settings), which)
        assert found.loss == 0
        assert not found.by_logprobs.any()
        assert not found.by_entropy.any()
        assert np.isfinite(list(found.metrics.values())).all()


# ---- extremes, where TRL overflows


def extremes():
    """Every loss at every level; and every divergence, corrected, with every correction of the sampler at every level,
    and with losses that change so fast that each meets each of the three."""
    plain = [(loss, level, "none", "k3") for loss, level in itertools.product(ALL, LEVELS)]
    corrections = [mode for mode in MODES if mode != "none"]
    corrected = itertools.product(LEVELS, ESTIMATORS, corrections)
    turns = itertools.cycle(ALL)
    return plain + [(loss, level, mode, name) for loss, (level, name, mode) in zip(turns, corrected)]


@pytest.mark.parametrize(("loss_type", "level", "mode", "estimator"), extremes())
def test_log_ratios_of_a_thousand_give_finite_losses_and_gradients(loss_type, level, mode, estimator):
    """Policy, old, reference and sampler apart by 1000 in every direction, advantages of every sign."""
    signs = np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.float32)  # 27 tokens
    rows = np.resize(signs, (B, TC, 3))
    base = np.full((B, TC), -2000, np.float32)
    case = replace(
        random_case(0),
        logprobs=base,
        old=base + 1000 * rows[..., 0],
        ref=base + 1000 * rows[..., 1],
        sampler=base + 1000 * rows[..., 2],
        mask=np.ones((B, TC), np.float32),
        advantages=np.array([1.5, -1.5, 0, 0, -1.5, 1.5], np.float32),
    )
    objective = objective_of(
        loss_type,
        level=level,
        kl_estimator=estimator,
        use_bias_correction_kl=mode != "none",
        sampler_mode=mode,
        sampler_bounds=(None, None),
    )
    found, _ = ours(objective, case)
    assert np.isfinite(found.loss)
    assert np.isfinite(found.by_logprobs).all()
    assert np.isfinite(list(found.metrics.values())).all(), found.metrics


@pytest.mark.parametrize("loss_type", [kind for kind in ALL if kind not in ("cispo", "reinforce", "vespo")])
def test_an_advantage_of_zero_gives_zero_loss_whatever_the_ratio(loss_type):
    """Infinity times 0 is not a number."""
    case = random_case(0)
    case = replace(case, old=case.logprobs - 1000, advantages=np.zeros(B, np.float32))
    found, _ = ours(objective_of(loss_type, beta=0.0), case)
    assert found.loss == 0
    assert not found.by_logprobs.any()


# ---- the whole


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ALL)
def test_first_update_has_ratio_one_and_the_policy_gradient(loss_type, level):
    """Without old log-probs the ratio is exactly 1, its gradient that of the log-prob; of a row's ratio it is spread
    over the row's tokens."""
    objective = objective_of(loss_type, level=level, beta=0.0)
    case = random_case(0, old=False)
    found, _ = ours(objective, case)
    assert not any(value for name, value in found.metrics.items() if "clip" in name)
    weights = np.asarray(objective.weigh(batch_of(case, objective)).weights)[:, None]
    wanted = -weights * case.advantages[:, None] * case.mask
    uses_ratio_of_rows = loss_type not in ("cispo", "vespo", "reinforce")
    if level == "trajectory" and uses_ratio_of_rows:
        wanted = wanted * case.mask.sum(1, keepdims=True)  # each token moves the ratio of all
    np.testing.assert_allclose(found.by_logprobs, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss_type", ALL)
def test_a_rows_gradient_is_its_own_and_zero_without_advantage(loss_type):
    """So a micro-batch may take any rows, and those without advantage can be left out."""
    objective = objective_of(loss_type, beta=0.0)
    case, other = random_case(11), random_case(1)
    half = lambda name: np.concatenate([getattr(case, name)[:3], getattr(other, name)[3:]])
    mixed = replace(case, **{name: half(name) for name in ("logprobs", "old", "sampler", "advantages")})
    (found, _), (again, _) = ours(objective, case), ours(objective, mixed)
    assert found.by_logprobs[:3].any()
    np.testing.assert_array_equal(found.by_logprobs[:3], again.by_logprobs[:3])
    without = case.advantages == 0
    assert case.mask[without].any()
    assert not found.by_logprobs[without].any()


@pytest.mark.parametrize("loss_type", ALL)
def test_every_token_counts_the_end_of_sequence_included(loss_type):
    """The mask's last 1 of a row is the end-of-sequence token: stopping must be learnt like any other action."""
    case = random_case(0, old=False)
    found, _ = ours(objective_of(loss_type, beta=0.0), case)
    last = case.mask.sum(1).astype(int) - 1
    rows = np.flatnonzero((last >= 0) & (case.advantages != 0))
    assert len(rows) >= 4
    assert (found.by_logprobs[rows, last[rows]] != 0).all()


def test_sft_is_the_mean_negative_loglikelihood():
    case = random_case(0, old=False)
    batch = SFT().weigh(batch_of(case, GRPO()))
    found, _ = SFT().loss(jnp.asarray(case.logprobs), None, batch)
    assert found == pytest.approx(-(case.logprobs * case.mask).sum() / case.mask.sum(), rel=1e-6)
