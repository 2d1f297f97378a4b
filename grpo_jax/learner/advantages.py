"""Advantages: how much better a completion did than its group. Host arithmetic on [P,G] numbers, in float64.

NaN marks a completion without a reward: it is left out of means and deviations and gets advantage 0, as does one
whose group has fewer than two rewards. Standard deviations divide by n - 1; divisors are a standard deviation
plus 1e-4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SMALL = 1e-4


@dataclass(frozen=True)
class Advantages:
    """Computes a rollout's advantages from its rewards."""

    estimator: str = "group"  # group, leave_one_out or reinforce_plus_plus
    scale: str = "group"  # group, batch or none
    per_function: bool = False  # GDPO: each function is normalised by itself
    weights: Sequence[float] = (1.0,)  # of the functions, for GDPO
    largest: float | None = None

    def __call__(
        self,
        rewards: np.ndarray,
        values: np.ndarray,
        action_mask: np.ndarray,
        penalty: np.ndarray | None = None,
    ) -> np.ndarray:
        """Advantages float32, [P,G], or [P,G,Tc] for `reinforce_plus_plus`.

        rewards [P,G] are the weighted sums of `values` [P,G,n]; action_mask [P,G,Tc] is True for tokens that the
        policy chose; penalty [P,G,Tc], 0 elsewhere, is taken off: the whole of a completion's from its reward, or
        token by token (REINFORCE++).
        """
        if self.estimator == "reinforce_plus_plus":
            found = reinforce_plus_plus(rewards, action_mask, penalty)
        elif self.per_function:
            found = gdpo(values, self.weights)
        else:
            taken = 0.0 if penalty is None else penalty.astype(np.float64).sum(-1)
            estimate = leave_one_out if self.estimator == "leave_one_out" else group_advantages
            found = estimate(rewards - taken, self.scale)
        return found if self.largest is None else np.clip(found, -self.largest, self.largest)


def group_advantages(rewards: np.ndarray, scale: str = "group") -> np.ndarray:
    """Advantages [P,G] float32 from rewards [P,G].

        A = (R - mean of the group) / (std + 1e-4)

    with the standard deviation of the group (`group`; DeepSeekMath, arXiv:2402.03300, section 4.1), of the whole
    batch (`batch`; arXiv:2508.08221), or not divided at all (`none`; Dr. GRPO, arXiv:2503.20783).
    """
    rewards = np.asarray(rewards, np.float64)
    return _scaled(rewards - _mean(rewards, axis=1), rewards, scale)


def leave_one_out(rewards: np.ndarray, scale: str = "none") -> np.ndarray:
    """Advantages [P,G] float32: a completion's reward less the mean of the others in its group.

        A_i = (R_i - mean of the others) / ...

    Not divided (`none`; RLOO, arXiv:2402.14740), divided by the standard deviation of the others + 1e-4 (`group`;
    Reinforce-Lite, which must bound the result: the others often agree), or standardised over the batch (`batch`).
    """
    rewards = np.asarray(rewards, np.float64)
    known = ~np.isnan(rewards)
    others = np.maximum(known.sum(1, keepdims=True) - 1, 0)
    centred = np.where(known & (others > 0), rewards - _mean_of_others(rewards), np.nan)
    if scale == "group":
        return _filled(centred / (_std_of_others(rewards) + _SMALL))
    if scale == "batch":
        return _filled((centred - _mean(centred, axis=None)) / (_std(centred, axis=None) + _SMALL))
    return _filled(centred)


def gdpo(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Advantages [P,G] float32 from the values [P,G,n] of n functions, each standardised within its group, then
    summed with `weights`, then standardised over the batch (GDPO, arXiv:2601.05242): functions with a small and
    a large spread count equally."""
    values = np.asarray(values, np.float64)
    each = (values - _mean(values, axis=1)) / (_std(values, axis=1) + _SMALL)
    total = np.where(np.isnan(each), 0.0, each) @ np.asarray(weights, np.float64)
    total = np.where(np.isnan(values).all(-1), np.nan, total)
    return _filled((total - _mean(total, axis=None)) / (_std(total, axis=None) + _SMALL))


def reinforce_plus_plus(
    rewards: np.ndarray, action_mask: np.ndarray, penalty: np.ndarray | None = None
) -> np.ndarray:
    """Advantages [P,G,Tc] float32 per token; [P,G,1] without a penalty, as a row's tokens then have the same.

    A token's return is the completion's reward less the penalties from that token on; returns are standardised
    over all tokens of the batch that the policy chose (REINFORCE++, arXiv:2501.03262, section 3). 0 elsewhere.
    """
    if penalty is None:
        penalty = np.zeros((*rewards.shape, 1))
        there = action_mask.any(-1, keepdims=True)
    else:
        there = action_mask
    later = np.cumsum(penalty.astype(np.float64)[..., ::-1], axis=-1)[..., ::-1]
    returns = np.where(there, rewards[..., None] - later, np.nan)
    counts = action_mask.sum(-1, keepdims=True) if penalty.shape[-1] == 1 else np.ones_like(returns)
    mean, std = _moments(returns, counts)
    return _filled((returns - mean) / (std + _SMALL))


def _scaled(centred: np.ndarray, rewards: np.ndarray, scale: str) -> np.ndarray:
    if scale == "none":
        return _filled(centred)
    return _filled(centred / (_std(rewards, axis=1 if scale == "group" else None) + _SMALL))


def _filled(advantages: np.ndarray) -> np.ndarray:
    return np.nan_to_num(advantages, nan=0.0).astype(np.float32)


def _mean(x: np.ndarray, axis: int | None) -> np.ndarray:
    known = ~np.isnan(x)
    total = np.where(known, x, 0.0).sum(axis=axis, keepdims=True)
    return total / np.maximum(known.sum(axis=axis, keepdims=True), 1)


def _std(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Standard deviation; 0 where fewer than two values are known."""
    known = ~np.isnan(x)
    squares = np.where(known, (x - _mean(x, axis)) ** 2, 0.0).sum(axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(known.sum(axis=axis, keepdims=True) - 1, 1))


def _mean_of_others(x: np.ndarray) -> np.ndarray:
    """[P,G]: for each place the mean of the group's other known values."""
    known = ~np.isnan(x)
    filled = np.where(known, x, 0.0)
    return (filled.sum(1, keepdims=True) - filled) / np.maximum(known.sum(1, keepdims=True) - known, 1)


def _std_of_others(x: np.ndarray) -> np.ndarray:
    """[P,G]: for each place the standard deviation of the group's other known values; computed anew for each,
    because a difference of large sums would lose precision."""
    own = np.eye(x.shape[1], dtype=bool)
    without = np.where(own, np.nan, x[:, None, :])  # [P,G,G]: row i without value i
    return _std(without, axis=2)[..., 0]


def _moments(x: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of what is not NaN, each value `counts` times."""
    weight = np.where(np.isnan(x), 0, counts)
    filled, n = np.where(np.isnan(x), 0.0, x), max(weight.sum(), 1)
    mean = (weight * filled).sum() / n
    return mean, np.sqrt((weight * (filled - mean) ** 2).sum() / max(n - 1, 1))
