"""Soft overlong punishment: a penalty for completions that come near the length limit."""

import numpy as np
from numpy.typing import ArrayLike


def soft_overlong(lengths: ArrayLike, limit: int, buffer: int) -> np.ndarray:
    """The penalty to add to the rewards of completions of `lengths` tokens: float64, same shape as `lengths`.

        0                             up to limit - buffer tokens
        (limit - buffer - n) / buffer between them, falling from 0 to -1
        -1                            from limit tokens on

    DAPO (arXiv:2503.14476, equation 13). With a buffer of 0 there is no penalty.
    """
    room = limit - buffer - np.asarray(lengths, np.float64)
    return np.clip(room / buffer, -1.0, 0.0) if buffer else np.zeros_like(room)
