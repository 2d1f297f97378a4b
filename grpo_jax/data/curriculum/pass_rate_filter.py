"""Which rows an epoch leaves out, by the share of their completions that succeeded when they were last sampled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Rates = Mapping[str, Sequence[float]]
"""row -> (the share of its completions that succeeded, the epoch when that was): JSON has text for its keys."""


@dataclass(frozen=True)
class PassRateFilter:
    """Rows take part while low < rate < high; those never seen always do.

    History resampling (SRPO, arXiv:2504.14286, section 3.4) is `high` = 1: rows that were always solved have no
    gradient any more, and those that were never solved may yet be. Open-R1 and others keep rates between two bounds.

    Args:
        retry: a row is left out of so many epochs, then it is tried again; 0: it never comes back.
        known: rates from a column of the data set, row -> rate; a rate measured in the run counts instead.
    """

    low: float = -math.inf
    high: float = math.inf
    retry: int = 0
    known: Mapping[int, float] = field(default_factory=dict)

    def leaves_out(self, row: int, epoch: int, rates: Rates) -> bool:
        """Whether this epoch of the domain leaves out `row`."""
        rate, seen = rates.get(str(row)) or (self.known.get(row), -1)
        if rate is None or self.low < rate < self.high:
            return False
        return self.retry == 0 or epoch - seen <= self.retry


def seen(rates: Rates, rows: Sequence[int], epochs: Sequence[int], successes: np.ndarray) -> Rates:
    """`rates` updated by the successes [n,G] of n rows; NaN where unknown."""
    found = dict(rates)
    for row, epoch, group in zip(rows, epochs, successes):
        judged = group[~np.isnan(group)]
        if len(judged):
            found[str(row)] = (float(judged.mean()), int(epoch))
    return found
