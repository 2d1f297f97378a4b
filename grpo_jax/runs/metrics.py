"""The metrics of a step that are taken from rollouts, rewards and clocks.

Names mean what they mean in TRL 1.16; what TRL does not have is marked (ours). Pure numpy.
"""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def rollout_metrics(
    lengths: ArrayLike,
    finished: ArrayLike,
    values: ArrayLike,
    names: Sequence[str],
    weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Statistics of the completions and their rewards.

    Args:
        lengths: int [P, G], tokens of each completion, its end-of-sequence token included.
        finished: bool [P, G], ended with an end-of-sequence token; the others were cut at the limit.
        values: float [B, n], rewards of B = P*G rows from n functions; NaN where a function does not apply.
        names: of the n functions. weights: of the n functions in the sum (default 1).
    Returns:
        TRL's `completions/*`, `rewards/{name}/{mean,std}`, `reward` and `reward_std` (over all rows),
        `frac_reward_zero_std` (groups whose rewards are all equal, so that nothing is learned from them), and
        `reward_group_std` (ours: mean over groups of the spread within one). Standard deviations with n-1. A
        row to which no function applies has no reward and is left out.
    """
    lengths, finished, values = (
        np.asarray(lengths),
        np.asarray(finished, bool),
        np.asarray(values, np.float64),
    )
    factors = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
    total = np.where(np.isnan(values).all(axis=1), np.nan, np.nansum(values * factors, axis=1))
    spread = _std(total.reshape(lengths.shape), axis=1)
    metrics = _lengths("length", lengths) | _lengths("terminated_length", lengths[finished])
    metrics["completions/clipped_ratio"] = float(1.0 - finished.mean())
    for name, column in zip(names, values.T):
        metrics[f"rewards/{name}/mean"] = float(_mean(column, axis=0))
        metrics[f"rewards/{name}/std"] = float(_std(column, axis=0))
    return metrics | {
        "reward": float(_mean(total, axis=0)),
        "reward_std": float(_std(total, axis=0)),
        "reward_group_std": float(_mean(spread, axis=0)),
        "frac_reward_zero_std": float(np.isclose(spread, 0.0).mean()),
    }


def _lengths(kind: str, lengths: np.ndarray) -> dict[str, float]:
    """`completions/{mean,min,max}_{kind}`; 0 where there is none, as in TRL."""
    counts = lengths if lengths.size else np.zeros(1)
    return {f"completions/{name}_{kind}": float(getattr(counts, name)()) for name in ("mean", "min", "max")}


def _mean(x: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is left (numpy's own would warn)."""
    count = (~np.isnan(x)).sum(axis=axis)
    return np.where(count > 0, np.nansum(x, axis=axis) / np.maximum(count, 1), np.nan)


def _std(x: np.ndarray, axis: int) -> np.ndarray:
    """Standard deviation (n-1) of what is not NaN; NaN where fewer than two are left."""
    count = (~np.isnan(x)).sum(axis=axis)
    squares = np.nansum((x - np.expand_dims(_mean(x, axis), axis)) ** 2, axis=axis)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def speed_metrics(step_time: float, step_tokens: int, num_tokens: int) -> dict[str, float]:
    """TRL's `step_time` (seconds) and `num_tokens` (so far, with prompts), and `tokens_per_second` (ours)."""
    return {
        "step_time": step_time,
        "num_tokens": num_tokens,
        "tokens_per_second": step_tokens / step_time if step_time > 0 else 0.0,
    }


def peak_memory() -> tuple[int, str]:
    """(bytes, "device" or "process"): the peak of the fullest local device, or of this process if none reports one.

    CPU devices keep no statistics. The process's number is its peak resident set, Python and libraries
    included.
    """
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return (max(peaks), "device") if max(peaks) else (_peak_resident(), "process")


def _peak_resident() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
