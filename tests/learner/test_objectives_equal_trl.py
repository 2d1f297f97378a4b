"""Every objective that TRL has, against TRL's own code: values within 1e-6, gradients within 1e-5, and its metrics.

Known differences: TRL overflows beyond a log-ratio of 88, where ours stays finite
(test_losses.py); a mean over no token is 0 here.
"""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import LOSSES, MAX_LENGTH, TC, B, assert_outcomes_equal, ours, random_case
from trl_oracle import TRL, tensor, torch

from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.objective import GRPO

LEVELS = ("token", "sequence")
DIVERGENCES = ((0.0, True), (0.1, True), (0.1, False))  # (beta, use_bias_correction_kl)
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
FEATURES = {
    "delta": {"delta": 1.25},
    "off_policy_mask": {"off_policy_threshold": 0.05},
    "off_policy_mask_drops_all_bad": {"off_policy_threshold": -9.0},
    "high_entropy": {"top_entropy_quantile": 0.2},
    "entropy_bonus": {"bonus": EntropyBonus(0.1)},
    "both_entropies": {"bonus": EntropyBonus(0.1), "top_entropy_quantile": 0.4},
    "other_sapo": {"sapo_temperatures": (0.7, 2.0)},
    "other_vespo": {"vespo_positive": (1.0, 0.5), "vespo_negative": (4.0, 1.5)},
} | {mode: {"sampler_mode": mode, "sampler_bounds": (0.8, 1.3)} for mode in MODES}


def objective_of(loss_type, **settings) -> GRPO:
    cap = 1.1 if loss_type == "cispo" else 0.3
    return replace(GRPO(loss_type, 0.2, cap, max_length=MAX_LENGTH), **settings)


def allowed(objective: GRPO) -> bool:
    """TRL refuses VESPO with the sampler's ratio of whole rows."""
    return objective.loss_type != "vespo" or not objective.sampler_mode.startswith("sequence")


def assert_equal(objective, case):
    """Value, gradients and metrics of ours and of TRL's."""
    found, _ = ours(objective, case)
    wanted = TRL(objective)(case)
    assert_outcomes_equal(found, wanted, objective)
    assert_metrics_equal(objective, case, found.metrics, wanted.metrics)
    return found


def assert_metrics_equal(objective, case, found, wanted):
    found, wanted = dict(found), dict(wanted)
    if not objective.needs_entropy:
        wanted.pop("entropy")  # computed only when it is asked for
    wanted.pop("entropy_coef", None)  # of the update, not of the loss
    found.pop("off_policy_dropped", None)  # ours
    if objective.sampler_mode == "none":
        found = {name: value for name, value in found.items() if not name.startswith("sampling/")}
    if case.old is not None:
        found.pop("sampling/sampling_logp_difference/mean", None)  # ours is that of the current policy
        found.pop("sampling/sampling_logp_difference/max", None)
        wanted.pop("sampling/sampling_logp_difference/mean", None)
        wanted.pop("sampling/sampling_logp_difference/max", None)
    if objective.sampler_mode.startswith("sequence"):  # TRL's have the 1 of rows that are wholly masked
        for which in ("min", "mean", "max"):
            del found[f"sampling/importance_sampling_ratio/{which}"]
            del wanted[f"sampling/importance_sampling_ratio/{which}"]
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=2e-6, abs=1e-6), name


@pytest.mark.parametrize("old", [True, False], ids=["old", "first"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_level_and_divergence_equals_trls(loss_type, level, old):
    """The divergence is added to any loss alike: each loss meets each divergence, and each level all of them."""
    turn = LOSSES.index(loss_type) + LEVELS.index(level)
    for i, seed in enumerate((0, 3)):
        beta, corrected = DIVERGENCES[(turn + i) % 3]
        objective = objective_of(loss_type, level=level, beta=beta, use_bias_correction_kl=corrected)
        found = assert_equal(objective, random_case(seed, old=old, huge=seed == 3, updates=1 + seed % 2))
        if old and seed == 0 and "clip_ratio/region_mean" in found.metrics and level == "token":
            assert found.metrics["clip_ratio/region_mean"] > 0.05  # the case must exercise the clip
        if not old:
            assert not any(v for name, v in found.metrics.items() if name.startswith("clip_ratio"))


def test_the_divergence_from_a_distant_reference_equals_trls():
    """Log-probs apart by up to 60 either way; not corrected, as exp(60) - exp(60) is noise in the correction."""
    case = random_case(5)
    far = np.random.default_rng(0).uniform(-60, 60, case.ref.shape).astype(np.float32)
    objective = objective_of("dapo", beta=0.1, use_bias_correction_kl=False)
    assert assert_equal(objective, replace(case, ref=case.logprobs + far)).metrics["kl"] > 1e15


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_feature_with_every_loss_equals_trls(loss_type, feature):
    """Each feature and each loss at both levels, and in cases with and without huge ratios."""
    turn = LOSSES.index(loss_type) + list(FEATURES).index(feature)
    objective = objective_of(loss_type, level=LEVELS[turn % 2], beta=0.04, **FEATURES[feature])
    if allowed(objective):
        huge = turn // 2 % 2
        assert_equal(objective, random_case(10 + huge, huge=huge == 1))


@pytest.mark.parametrize("seed", range(48))
def test_random_combinations_of_features_equal_trls(seed):
    """Settings drawn at random, a few of them off."""
    rng = np.random.default_rng(1000 + seed)
    maybe = lambda value, otherwise: value if rng.random() < 0.5 else otherwise
    loss_type = str(rng.choice(LOSSES))
    low, high = map(float, rng.uniform(0.05, 0.5, 2))
    largest = float(rng.uniform(1.0, 3.0))
    objective = GRPO(
        loss_type,
        low,
        high + (loss_type == "cispo"),  # TRL counts a wholly masked row as clipped if its 1 is above the cap
        beta=maybe(rng.uniform(0.01, 0.5), 0.0),
        use_bias_correction_kl=maybe(True, False),
        max_length=MAX_LENGTH,
        level=maybe("token", "sequence"),
        delta=maybe(rng.uniform(1.0, 2.0), None),
        bonus=maybe(EntropyBonus(rng.uniform(0, 0.3)), EntropyBonus()),
        top_entropy_quantile=maybe(rng.uniform(0.05, 1.0), 1.0),
        off_policy_threshold=maybe(rng.uniform(-0.1, 0.1), None),
        sampler_mode=maybe(str(rng.choice(MODES)), "none"),
        sampler_bounds=[(0.6, largest), (None, largest), (0.6, None)][rng.integers(3)],
    )
    if not allowed(objective):
        objective = replace(objective, sampler_mode="token_mask")
    case = random_case(seed, old=maybe(True, False), huge=rng.random() < 0.2, updates=int(rng.integers(1, 4)))
    assert_equal(objective, case)


@pytest.mark.parametrize("loss_type", [kind for kind in LOSSES if kind != "bnpo"])
def test_trls_accumulated_loss_equals_ours_of_the_whole_batch(loss_type):
    """TRL's bnpo divides by each micro-batch's own tokens and so depends on the split, which ours does not."""
    objective = objective_of(loss_type, beta=0.1)
    case = random_case(3)
    wanted = TRL(objective, accumulation=3)(case)
    assert_outcomes_equal(ours(objective, case)[0], wanted)


def test_a_vespo_weight_that_overflows_is_zero():
    """Some settings allow it: exp(270) for a whole row, which TRL's nan_to_num makes 0."""
    case = random_case(0)
    case = replace(case, old=case.logprobs - 1, mask=np.ones_like(case.mask))
    found = assert_equal(objective_of("vespo", vespo_positive=(30.0, 0.0), vespo_negative=(30.0, 1e-6)), case)
    assert found.loss == 0
    assert not found.by_logprobs.any()


# ---- edges


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])  # powers of two: products keep the last bit
@pytest.mark.parametrize("place", ["within", "at", "beyond"])
@pytest.mark.parametrize("side", ["low", "high", "delta"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ratios_at_the_clip_bounds_are_clipped_as_in_trl(level, side, place, advantage):
    """The edge is put at the float32 ratio itself, or one last bit to either side: what counts as clipped, and
    whether the gradient passes, must be the same. The ratio is `place` as seen from 1."""
    gap = np.float32(-0.25 if side == "low" else 0.25)
    of_all = lambda value: np.full((B, TC), value, np.float32)
    case = replace(random_case(0), logprobs=of_all(0), old=of_all(-gap), advantages=of_all(advantage)[:, 0])
    one, away = np.float32(1), np.float32(0 if side == "low" else 9)
    edge = {
        "at": lambda r: r,
        "within": lambda r: np.nextafter(r, away),
        "beyond": lambda r: np.nextafter(r, one),
    }
    edge = float(edge[place](_ratio(gap)))
    settings = {
        "low": {"epsilon_low": 1 - edge},
        "high": {"epsilon_high": edge - 1},
        "delta": {"delta": edge, "epsilon_high": 0.1},
    }[side]
    objective = objective_of("grpo", level=level, **settings)
    assert edge in (1 - objective.epsilon_low, 1 + objective.epsilon_high, objective.delta)
    found = assert_equal(objective, case)
    clips = {"low": advantage < 0, "high": advantage > 0, "delta": False}[side] and place == "beyond"
    if side != "delta":
        assert (found.metrics["clip_ratio/region_mean"] > 0) == clips
        assert np.any(found.by_logprobs) == (advantage != 0 and not clips)


def _ratio(gap):
    """exp(gap) in float32, on which both libraries agree."""
    theirs = torch.exp(tensor(gap)).numpy()
    assert theirs == np.asarray(jnp.exp(jnp.float32(gap)))
    return theirs


# ---- the entropy bonus's controller


@pytest.mark.parametrize(("quantile", "accumulation"), [(1.0, 2), (0.3, 1)])
def test_the_adaptive_entropy_coefficient_follows_trls(quantile, accumulation):
    """Twelve updates whose entropy crosses the target: coefficient, gate, loss and gradients each time."""
    bonus = EntropyBonus(0.02, adaptive=True, lowest=0.01, largest=0.04, step=0.006, target=1.3)
    objective = objective_of("dapo", bonus=bonus, top_entropy_quantile=quantile)
    theirs, control, coefs = TRL(objective, accumulation), bonus.start(), []
    for seed in range(12):
        case = random_case(seed)
        case = replace(case, entropy=case.entropy * np.float32(0.3 if seed % 5 < 3 else 1.0))
        wanted = theirs(case)
        found, control = ours(objective, case, control=control)
        if accumulation == 1:
            assert_outcomes_equal(found, wanted, seed)
            assert found.metrics["policy_loss"] == pytest.approx(wanted.metrics["policy_loss"], abs=1e-6)
        assert float(control.coef) == pytest.approx(wanted.metrics["entropy_coef"], abs=1e-7)
        coefs.append(float(control.coef))
    assert len(set(np.round(coefs, 4))) > 3
    assert math.isclose(max(coefs), 0.04, rel_tol=1e-6)
