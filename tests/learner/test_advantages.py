"""Advantages by hand: golden numbers, missing rewards, groups without spread, and plain loops in float64."""

import math
import statistics

import numpy as np
import pytest

from grpo_jax.learner.advantages import (
    Advantages,
    gdpo,
    group_advantages,
    leave_one_out,
    reinforce_plus_plus,
)

REWARDS = [1.0, 0.9, 0.0, 1.0]  # mean 0.725, standard deviation (n - 1) 0.4856
NAN = np.nan


def test_group_advantages_equal_the_golden_numbers():
    advantages = group_advantages(np.array([REWARDS]))
    assert advantages.dtype == np.float32
    spread = 0.48562674281111555
    assert np.std(REWARDS, ddof=1) == pytest.approx(spread)
    wanted = [(r - 0.725) / (spread + 1e-4) for r in REWARDS]
    np.testing.assert_allclose(advantages[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(advantages[0], [0.566162, 0.360285, -1.492609, 0.566162], atol=1e-6)


def test_each_group_is_normalised_independently():
    other = [5.0, -3.0, 100.0, 2.0]
    together = group_advantages(np.array([REWARDS, other]))
    np.testing.assert_array_equal(together[0], group_advantages(np.array([REWARDS]))[0])
    np.testing.assert_array_equal(together[1], group_advantages(np.array([other]))[0])


def test_batch_scale_centres_by_group_and_divides_by_the_batch_std():
    rewards = np.array([REWARDS, [5.0, -3.0, 10.0, 2.0]])
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards, "batch"), wanted, rtol=1e-6)


def test_scale_none_centres_and_does_not_divide():
    rewards = np.array([REWARDS, [5.0, -3.0, 10.0, 2.0]])
    wanted = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards, "none"), wanted, rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_missing_reward_gets_zero_and_counts_in_neither_mean_nor_std(scale):
    rewards = np.array([[*REWARDS, NAN], [NAN, 5.0, -3.0, 10.0, 2.0]])
    advantages = group_advantages(rewards, scale)
    known = ~np.isnan(rewards)
    assert (advantages[~known] == 0).all()
    without = rewards[known].reshape(2, 4)  # the same two groups of four
    np.testing.assert_allclose(advantages[known].reshape(2, 4), group_advantages(without, scale), rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group", [[0.3] * 3, [0.1 + 0.2, 0.3, 0.3], [NAN] * 3, [1.0, NAN, NAN]], ids=str)
def test_a_group_of_equal_rewards_or_one_known_reward_has_zero_advantages(scale, group):
    """0.1 + 0.2 differs from 0.3 in the last bit: dividing by a bare standard deviation would make it a 1."""
    advantages = group_advantages(np.array([group, [1.0, 0.0, 1.0]]), scale)
    np.testing.assert_allclose(advantages[0], 0.0, atol=1e-6)
    assert np.abs(advantages[1]).max() > 0.1


def test_advantages_of_a_group_sum_to_zero():
    rewards = np.random.default_rng(0).normal(size=(16, 8))
    rewards[np.random.default_rng(1).random((16, 8)) < 0.2] = NAN
    for scale in ("group", "batch", "none"):
        np.testing.assert_allclose(group_advantages(rewards, scale).sum(1), 0.0, atol=1e-4)


def test_large_rewards_keep_their_differences():
    """In float32 1e8 and 1e8 + 1 are one number."""
    np.testing.assert_allclose(
        group_advantages(np.array([[1e8, 1e8 + 1, 1e8 + 2]])), [[-1, 0, 1]], rtol=1e-3, atol=1e-6
    )


# ---- the other estimators, in plain loops


def random_rewards(seed, shape=(4, 5)):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(0, 2, shape)
    rewards[rng.random(shape) < 0.2] = NAN
    rewards[1] = [NAN] * (shape[1] - 1) + [3.0]  # one known reward
    return rewards


def known(values):
    return [float(x) for x in values if not math.isnan(x)]


def others_of(group, i):
    return known(x for j, x in enumerate(group) if j != i)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_leave_one_out_equals_a_loop(scale):
    for seed in range(5):
        rewards = random_rewards(seed)
        wanted = np.zeros(rewards.shape)
        there = []
        for p, group in enumerate(rewards):
            for i, reward in enumerate(group):
                others = others_of(group, i)
                if math.isnan(reward) or not others:
                    continue
                there.append((p, i))
                wanted[p, i] = reward - statistics.fmean(others)
                if scale == "group":
                    spread = statistics.stdev(others) if len(others) > 1 else 0.0
                    wanted[p, i] /= spread + 1e-4
        if scale == "batch":
            all_ = [wanted[place] for place in there]
            for place in there:
                wanted[place] = (wanted[place] - statistics.fmean(all_)) / (statistics.stdev(all_) + 1e-4)
        found = leave_one_out(rewards, scale)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_completion_is_not_its_own_baseline():
    """Its own reward in the mean would shrink every advantage by (G - 1) / G."""
    rewards = np.array([[1.0, 0.9, 0.0, 1.0]])
    np.testing.assert_allclose(leave_one_out(rewards), group_advantages(rewards, "none") * 4 / 3, rtol=1e-6)


def test_gdpo_counts_each_reward_function_alike_whatever_its_scale():
    """The second function's rewards are a thousand times the first's: unnormalised they would drown it."""
    small = np.random.default_rng(0).normal(size=(3, 4))
    large = np.random.default_rng(1).normal(size=(3, 4))
    alike = gdpo(np.stack([small, large], -1), [1.0, 1.0])
    np.testing.assert_allclose(gdpo(np.stack([small, 1000 * large], -1), [1.0, 1.0]), alike, atol=2e-3)
    weighted = gdpo(np.stack([small, large], -1), [1.0, 0.0])
    assert np.corrcoef(weighted.ravel(), group_advantages(small).ravel())[0, 1] > 0.999


@pytest.mark.parametrize("environment_tokens", [False, True])
@pytest.mark.parametrize("penalised", [True, False])
def test_reinforce_plus_plus_equals_a_loop_over_tokens(penalised, environment_tokens):
    """REINFORCE++: the reward at the end less the penalties from a token on, standardised over all tokens."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rewards, lengths = random_rewards(seed), rng.integers(0, 7, (4, 5))
        there = (np.arange(6) < lengths[..., None]) & (
            rng.random((4, 5, 6)) < (0.7 if environment_tokens else 1.0)
        )
        penalty = rng.normal(0, 0.3, (4, 5, 6)) * there
        returns = {}
        for p, i in np.ndindex(4, 5):
            for t in [] if math.isnan(rewards[p, i]) else np.flatnonzero(there[p, i]):
                later = sum(penalty[p, i, t:]) if penalised else 0.0
                returns[p, i, t] = rewards[p, i] - later
        mean, spread = statistics.fmean(returns.values()), statistics.stdev(returns.values())
        wanted = np.zeros((4, 5, 6))
        for place, value in returns.items():
            wanted[place] = (value - mean) / (spread + 1e-4)
        found = reinforce_plus_plus(rewards, there, penalty if penalised else None)
        assert found.shape == ((4, 5, 6) if penalised else (4, 5, 1))
        np.testing.assert_allclose(found * there, wanted, rtol=1e-5, atol=1e-6)


def test_advantages_are_clipped_to_the_largest_allowed():
    """Three of four agree: the others' spread is 0, and only the bound keeps the fourth from -10,000."""
    rewards, mask = np.array([[1.0, 1.0, 1.0, 0.0]]), np.ones((1, 4, 3), bool)
    values = rewards[..., None]
    assert Advantages("leave_one_out")(rewards, values, mask)[0, 3] == pytest.approx(-1e4)
    np.testing.assert_allclose(
        Advantages("leave_one_out", largest=2.0)(rewards, values, mask)[0, [0, 3]],
        [0.57725, -2],
        rtol=1e-4,
    )


@pytest.mark.parametrize("estimator", ["group", "leave_one_out", "reinforce_plus_plus"])
def test_a_penalty_is_subtracted_from_the_reward_once(estimator):
    """One token's penalty of 1 is the same to a completion as a reward that is less by 1."""
    rewards, mask = np.array([[1.0, 0.0, 2.0]]), np.ones((1, 3, 4), bool)
    penalty = np.zeros((1, 3, 4))
    penalty[0, 0, 3] = 1.0  # at the end: every token of the row is before it
    made = Advantages(estimator)
    found = made(rewards, rewards[..., None], mask, penalty)
    wanted = made(rewards - [[1, 0, 0]], rewards[..., None], mask)
    np.testing.assert_allclose(np.broadcast_to(wanted, found.shape), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", ["group", "leave_one_out", "reinforce_plus_plus"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("per_function", [False, True])
def test_advantages_without_rewards_to_compare_are_zero_and_not_nan(estimator, scale, per_function):
    made = Advantages(estimator, scale, per_function)
    mask = np.arange(3) < np.array([[3, 0, 2], [0, 0, 0]])[..., None]
    for rewards in (np.full((2, 3), NAN), np.ones((2, 3)), np.array([[NAN, NAN, 1.0], [NAN] * 3])):
        found = made(rewards, rewards[..., None], mask, None)
        np.testing.assert_allclose(found, 0.0, atol=1e-6)
