"""Advantages: how much better a completion did than its group. Host arithmetic on [P,G] numbers, in float64."""

import numpy as np


def group_advantages(rewards: np.ndarray, scale_rewards: str = "group") -> np.ndarray:
    """Advantages [P,G] float32 from rewards [P,G], where NaN marks a completion without a reward.

        A = (R - mean_group) / (std + 1e-4)        std with n - 1

    over the group (`group`; DeepSeekMath, arXiv:2402.03300, section 4.1), over the whole batch (`batch`), or not
    divided at all (`none`; Dr. GRPO, arXiv:2503.20783). A completion without a reward is left out of both
    moments and gets advantage 0; so does a group with fewer than two rewards.
    """
    rewards = np.asarray(rewards, np.float64)
    centred = rewards - _mean(rewards, axis=1)
    if scale_rewards == "group":
        centred = centred / (_std(rewards, axis=1) + 1e-4)
    elif scale_rewards == "batch":
        centred = centred / (_std(rewards, axis=None) + 1e-4)
    return np.nan_to_num(centred, nan=0.0).astype(np.float32)


def _mean(x: np.ndarray, axis: int | None) -> np.ndarray:
    known = ~np.isnan(x)
    total = np.where(known, x, 0.0).sum(axis=axis, keepdims=True)
    return total / np.maximum(known.sum(axis=axis, keepdims=True), 1)


def _std(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Standard deviation with n - 1; 0 where fewer than two values are known."""
    known = ~np.isnan(x)
    squares = np.where(known, (x - _mean(x, axis)) ** 2, 0.0).sum(axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(known.sum(axis=axis, keepdims=True) - 1, 1))
