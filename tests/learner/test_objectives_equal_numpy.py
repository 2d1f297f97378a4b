"""Every objective against float64 NumPy and finite differences; whole completions also against TRL's RLOO."""

from dataclasses import replace

import numpy as np
import pytest
from numpy_oracle import difference_gradient, numpy_loss
from objective_cases import LOSSES, MAX_LENGTH, TC, B, assert_outcomes_equal, ours, random_case

from grpo_jax.learner.objective import GRPO

ALL = (*LOSSES, "reinforce")
LEVELS = ("token", "sequence", "trajectory")
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def objective_of(loss_type, **settings) -> GRPO:
    cap = 1.1 if loss_type == "cispo" else 0.3
    return replace(GRPO(loss_type, 0.2, cap, max_length=MAX_LENGTH), **settings)


def assert_equal(objective, case):
    """Value and gradient of ours and of NumPy's."""
    found, _ = ours(objective, case)
    wanted, slope = numpy_loss(objective, case), difference_gradient(objective, case)
    mass = np.abs(slope).sum()
    assert abs(found.loss - wanted) <= 1e-6 * max(1.0, abs(wanted), mass)
    room = 1e-5 * np.abs(slope) + 2e-6 * np.abs(slope).max()
    assert (np.abs(found.by_logprobs - slope) <= room).all(), (found.by_logprobs, slope)
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ALL)
def test_every_loss_at_every_level_equals_numpy(loss_type, level):
    """Where TRL has the loss this checks the oracle too, as ours equals TRL's. (The first update, without old
    log-probs, is in test_losses.py.)"""
    assert_equal(objective_of(loss_type, level=level), random_case(ALL.index(loss_type)))


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_every_divergence_equals_numpy(estimator, corrected):
    """With a loss that has the ratio, and with one that has not."""
    for seed, (loss_type, level) in enumerate(zip(("dapo", "reinforce", "dapo"), LEVELS)):
        objective = objective_of(
            loss_type, level=level, beta=0.2, kl_estimator=estimator, use_bias_correction_kl=corrected
        )
        assert_equal(objective, random_case(seed, old=seed % 2 == 0))


@pytest.mark.parametrize("loss_type", ALL)
def test_per_token_advantages_equal_numpy(loss_type):
    """Each at two of the levels."""
    rng, turn = np.random.default_rng(2), ALL.index(loss_type)
    for seed in (turn, turn + 1):
        case = replace(random_case(20 + seed), advantages=rng.normal(0, 1, (B, TC)).astype(np.float32))
        assert_equal(
            objective_of(loss_type, level=LEVELS[seed % 3], beta=0.1, off_policy_threshold=0.0), case
        )


@pytest.mark.parametrize("loss_type", ALL)
def test_off_policy_rows_take_their_ratio_to_the_samplers_logprobs(loss_type):
    """For an off-policy row `old` is what the sampler recorded, so the sampler's correction is 1;
    with and without old log-probs of the on-policy ones, and with and without a correction."""
    on_policy = np.array([True, False] * (B // 2))
    modes = ("none", "token_truncate")
    for old, mode in zip((True, False), modes if ALL.index(loss_type) % 2 else modes[::-1]):
        objective = objective_of(loss_type, sampler_mode=mode)
        case = replace(random_case(3, old=old), on_policy=on_policy)
        found = assert_equal(objective, case)
        blind, _ = ours(objective, replace(case, on_policy=None))
        if (loss_type, mode) not in (("vespo", "token_truncate"), ("reinforce", "none")):
            assert found.loss != blind.loss  # VESPO multiplies both ratios: old cancels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_type", ALL)
def test_every_sampler_correction_equals_numpy(loss_type, mode):
    """Each loss and each correction at every level, with bounds on both sides; in VESPO the ratio of a row counts
    once."""
    turn = ALL.index(loss_type) + MODES.index(mode)
    settings = {"level": LEVELS[turn % 3], "sampler_mode": mode, "sampler_bounds": (0.8, 1.2)}
    assert_equal(objective_of(loss_type, **settings), random_case(turn % 4))


@pytest.mark.parametrize("seed", range(30))
def test_random_combinations_of_settings_equal_numpy(seed):
    rng = np.random.default_rng(seed)
    maybe = lambda value, otherwise: value if rng.random() < 0.5 else otherwise
    objective = GRPO(
        str(rng.choice(ALL)),
        *map(float, rng.uniform(0.05, 0.5, 2)),
        beta=maybe(0.2, 0.0),
        use_bias_correction_kl=maybe(True, False),
        kl_estimator=str(rng.choice(["k1", "k2", "k3"])),
        max_length=MAX_LENGTH,
        level=str(rng.choice(LEVELS)),
        delta=maybe(1.5, None),
        off_policy_threshold=maybe(0.02, None),
        sampler_mode=maybe(str(rng.choice(["token_truncate", "token_mask"])), "none"),
    )
    case = random_case(100 + seed, old=maybe(True, False), sampler=maybe(True, False))
    if rng.random() < 0.5:
        case = replace(case, advantages=rng.normal(0, 1, (B, TC)).astype(np.float32))
    if rng.random() < 0.3:
        case = replace(case, on_policy=rng.random(B) < 0.5)
    assert_equal(objective, case)


def test_the_trajectory_level_equals_trls_rloo():
    """Value, gradient and clip metrics. A wholly masked row has ratio 1 there, and adds -A / B to the value alone:
    here it adds nothing."""
    rloo_loss = pytest.importorskip("trl_oracle").rloo_loss
    objective = objective_of("grpo", level="trajectory")
    for seed in range(4):
        case = random_case(seed)
        wanted = rloo_loss(case, 0.2, 0.3)
        empty = case.advantages[case.mask.sum(1) == 0].sum() / B
        wanted = replace(wanted, loss=wanted.loss + empty)
        found, _ = ours(objective, case)
        assert_outcomes_equal(found, wanted, seed)
        for name in wanted.metrics:
            if name.startswith("clip_ratio"):
                assert found.metrics[name] == pytest.approx(wanted.metrics[name], abs=1e-6), name
    assert found.metrics["clip_ratio/region_mean"] > 0
