"""Packing: puts several rows into one sequence, so that little of it is padding.

The rows of an epoch are packed in windows, in the epoch's order. The sequences of a window are then shuffled, because
packing puts the long rows first. The result depends only on (seed, epoch).
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

Strategy = Literal["ffd", "bfd"]

WINDOW = 1024
"""Rows that are packed together: enough to leave only a few percent of padding, few enough to keep the order random."""


def pack(lengths: Sequence[int] | np.ndarray, room: int, strategy: Strategy = "ffd") -> list[list[int]]:
    """Sequences of row indices. Rows have `lengths` of at most `room` tokens, and so has each sequence in total.

    The longest rows come first. Each goes into the first sequence with room for it (`ffd`, first-fit decreasing: at
    most 11/9 of the optimal number plus one, Johnson 1973), or into the fullest such sequence (`bfd`, best-fit
    decreasing).
    """
    left = np.zeros(len(lengths), np.int64)
    packed: list[list[int]] = []
    for row in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        fits = left[: len(packed)] >= lengths[row]
        if not fits.any():
            left[len(packed)] = room
            packed.append([])
            chosen = len(packed) - 1
        elif strategy == "ffd":
            chosen = int(fits.argmax())
        else:
            chosen = int(np.where(fits, left[: len(packed)], room + 1).argmin())
        packed[chosen].append(row)
        left[chosen] -= lengths[row]
    return packed


class Packing:
    """An endless series of packed sequences, epoch after epoch; `packing[i]` are the row indices of the i-th.

    Args:
        order: epoch -> row indices in that epoch's order.
        mix: (epoch, n) -> an order of the n sequences of a window; None keeps the order of packing.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        room: int,
        strategy: Strategy,
        order: Callable[[int], np.ndarray],
        mix: Callable[[int, int], np.ndarray] | None,
    ):
        self._lengths, self._room, self._strategy = np.asarray(lengths), room, strategy
        self._order, self._mix = order, mix
        self._ends: list[int] = []  # number of sequences up to the end of each epoch packed so far
        self._epoch = functools.lru_cache(maxsize=2)(self._packed)

    def __getitem__(self, index: int) -> list[int]:
        epoch = 0
        while self._end(epoch) <= index:
            epoch += 1
        return self._epoch(epoch)[index - (self._end(epoch - 1) if epoch else 0)]

    def count(self, epochs: Fraction) -> int:
        """The number of sequences in `epochs` epochs, which may end within one."""
        whole, rest = divmod(epochs, 1)
        done = self._end(int(whole) - 1) if whole else 0
        return done + (math.ceil(rest * len(self._epoch(int(whole)))) if rest else 0)

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._epoch(len(self._ends))))
        return self._ends[epoch]

    def _packed(self, epoch: int) -> list[list[int]]:
        rows, found = self._order(epoch), []
        for first in range(0, len(rows), WINDOW):
            window = rows[first : first + WINDOW]
            sequences = pack(self._lengths[window], self._room, self._strategy)
            mixed = range(len(sequences)) if self._mix is None else self._mix(epoch, len(sequences))
            found += [window[sequences[i]].tolist() for i in mixed]
        return found
