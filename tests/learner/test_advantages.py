"""Advantages by hand: golden numbers, missing rewards, groups without spread."""

import numpy as np
import pytest

from grpo_jax.learner.advantages import group_advantages

REWARDS = [1.0, 0.9, 0.0, 1.0]  # mean 0.725, standard deviation (n - 1) 0.4856
NAN = np.nan


def test_golden_group():
    advantages = group_advantages(np.array([REWARDS]))
    assert advantages.dtype == np.float32
    spread = 0.48562674281111555
    assert np.std(REWARDS, ddof=1) == pytest.approx(spread)
    wanted = [(r - 0.725) / (spread + 1e-4) for r in REWARDS]
    np.testing.assert_allclose(advantages[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(advantages[0], [0.566162, 0.360285, -1.492609, 0.566162], atol=1e-6)


def test_groups_do_not_see_each_other():
    other = [5.0, -3.0, 100.0, 2.0]
    together = group_advantages(np.array([REWARDS, other]))
    np.testing.assert_array_equal(together[0], group_advantages(np.array([REWARDS]))[0])
    np.testing.assert_array_equal(together[1], group_advantages(np.array([other]))[0])


def test_batch_scale_centres_by_group_and_divides_by_one_spread():
    rewards = np.array([REWARDS, [5.0, -3.0, 10.0, 2.0]])
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards, "batch"), wanted, rtol=1e-6)


def test_no_scale_only_centres():
    rewards = np.array([REWARDS, [5.0, -3.0, 10.0, 2.0]])
    wanted = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards, "none"), wanted, rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_missing_reward_leaves_both_moments_and_gets_zero(scale):
    rewards = np.array([[*REWARDS, NAN], [NAN, 5.0, -3.0, 10.0, 2.0]])
    advantages = group_advantages(rewards, scale)
    known = ~np.isnan(rewards)
    assert (advantages[~known] == 0).all()
    without = rewards[known].reshape(2, 4)  # the same two groups of four
    np.testing.assert_allclose(advantages[known].reshape(2, 4), group_advantages(without, scale), rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group", [[0.3] * 3, [0.1 + 0.2, 0.3, 0.3], [NAN] * 3, [1.0, NAN, NAN]], ids=str)
def test_a_group_without_spread_or_without_a_pair_teaches_nothing(scale, group):
    """0.1 + 0.2 differs from 0.3 in the last bit: dividing by a bare standard deviation would make it a 1."""
    advantages = group_advantages(np.array([group, [1.0, 0.0, 1.0]]), scale)
    np.testing.assert_allclose(advantages[0], 0.0, atol=1e-6)
    assert np.abs(advantages[1]).max() > 0.1


def test_advantages_of_a_group_sum_to_nothing():
    rewards = np.random.default_rng(0).normal(size=(16, 8))
    rewards[np.random.default_rng(1).random((16, 8)) < 0.2] = NAN
    for scale in ("group", "batch", "none"):
        np.testing.assert_allclose(group_advantages(rewards, scale).sum(1), 0.0, atol=1e-4)


def test_large_rewards_keep_their_differences():
    """In float32 1e8 and 1e8 + 1 are one number."""
    np.testing.assert_allclose(
        group_advantages(np.array([[1e8, 1e8 + 1, 1e8 + 2]])), [[-1, 0, 1]], rtol=1e-3, atol=1e-6
    )
