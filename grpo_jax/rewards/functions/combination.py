"""Combines the scores of several reward functions into one reward per row."""

from collections.abc import Sequence

import numpy as np


def combine(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Weighted sum over functions, float64 [B]. A NaN (the function does not apply, or failed) adds nothing.

    Args:
        values: [B, n], one column per function.
        weights: [n].

    A row for which every function gave NaN stays NaN, because no score is not the same as zero.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(weights) != values.shape[1]:
        raise ValueError(f"values {values.shape} and {len(weights)} weights must be [B, n] and [n]")
    judged = ~np.isnan(values)
    total = np.where(judged, values, 0.0) @ np.asarray(weights, np.float64)
    return np.where(judged.any(axis=1), total, np.nan)
