"""The order of an epoch: a function of (seed, epoch), so nothing needs saving or rewinding."""

import functools

import numpy as np


@functools.lru_cache(maxsize=16)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1 that depends on (seed, epoch) only.

    Sorts raw Philox words: NumPy promises those bits for every version, and does not promise `permutation`'s.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(n)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False  # shared by the cache
    return order
