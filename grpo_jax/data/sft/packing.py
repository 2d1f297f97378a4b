"""Several rows in one sequence, so that little of it is padding: which rows go together, epoch by epoch.

An epoch's rows are taken in its own order, a window at a time, and packed within the window; the sequences of a window
are then shuffled, since packing puts the long rows first. All of it is a function of (seed, epoch).
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

Strategy = Literal["ffd", "bfd"]

WINDOW = 1024
"""Rows that are packed among one another: enough to fill sequences to a few percent, few enough to stay shuffled."""


def pack(lengths: Sequence[int] | np.ndarray, room: int, strategy: Strategy = "ffd") -> list[list[int]]:
    """The rows of `lengths` (at most `room` tokens each) by their indices, in sequences of at most `room` tokens.

    The longest first, each into the first sequence with room for it (`ffd`, first-fit decreasing: Johnson 1973, at most
    11/9 of the fewest possible and one more), or into the fullest such (`bfd`, best-fit decreasing).
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
    """An endless series of sequences of rows, epoch after epoch; `packing[i]` are the rows of the i-th.

    Args:
        order: epoch -> the rows' indices in that epoch's order.
        mix: (epoch, n) -> an order of the n sequences of an epoch's window; None: as they were packed.
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
        self._ends: list[int] = []  # sequences up to the end of each epoch, as far as is known
        self._epoch = functools.lru_cache(maxsize=2)(self._packed)

    def __getitem__(self, index: int) -> list[int]:
        epoch = 0
        while self._end(epoch) <= index:
            epoch += 1
        return self._epoch(epoch)[index - (self._end(epoch - 1) if epoch else 0)]

    def count(self, epochs: Fraction) -> int:
        """Sequences in so many epochs, the last of them in part."""
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
