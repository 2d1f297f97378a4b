"""A rollout's rewards on the host: groups taken out of them, and put after one another. No jax in here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Scored:
    """A rollout's rewards."""

    rewards: np.ndarray  # [P,G] float32, `base` with the over-long shaping: what advantages are computed from
    base: np.ndarray  # [P,G] float32, the weighted sum; NaN where no function said anything
    values: np.ndarray  # [P,G,n] float32, one for each function; NaN for None
    completions: list[str]  # P * G texts without special tokens
    failures: dict[str, int]  # rows lost to errors, timeouts and NaNs, by "rewards/{name}/{kind}"
    extras: Columns  # what functions logged for each row: P * G values a column, None where they did not
    judges: (
        np.ndarray
    )  # [P] int, the first function that is asked about each prompt: it says what a success is
    metrics: dict[str, float]  # what they logged for the rollout as a whole, and the mean of the shaping

    @property
    def successes(self) -> np.ndarray:
        """[P,G] float32: 1 where the judging function gave 1 or more, 0 where less, NaN where it said nothing."""
        verdicts = np.take_along_axis(self.values, self.judges[:, None, None], axis=2)[..., 0]
        return np.where(np.isnan(verdicts), verdicts, (verdicts >= 1).astype(np.float32))

    def take(self, which: np.ndarray) -> "Scored":
        """The groups at the indices `which`. Failures and metrics stay behind: they are of the whole rollout."""
        G = self.rewards.shape[1]
        pick = lambda column: [value for i in which for value in column[i * G : (i + 1) * G]]
        extras = {name: pick(column) for name, column in self.extras.items()}
        arrays = self.rewards[which], self.base[which], self.values[which]
        return Scored(*arrays, pick(self.completions), {}, extras, self.judges[which], {})

    @staticmethod
    def join(parts: "Sequence[Scored]") -> "Scored":
        """Groups after one another; failures add up, a metric is the mean of the parts that have it."""
        rows = [part.rewards.size for part in parts]
        return Scored(
            rewards=np.concatenate([part.rewards for part in parts]),
            base=np.concatenate([part.base for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            completions=[text for part in parts for text in part.completions],
            failures=dict(sum((Counter(part.failures) for part in parts), Counter())),
            extras=stacked([part.extras for part in parts], rows),
            judges=np.concatenate([part.judges for part in parts]),
            metrics=means([part.metrics for part in parts], rows),
        )


def stacked(parts: Sequence[Columns], rows: Sequence[int]) -> Columns:
    """Columns put under one another; None where a part, of so many `rows`, lacks one."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: [value for part, n in zip(parts, rows) for value in part.get(name, [None] * n)]
        for name in names
    }


def means(parts: Sequence[dict[str, float]], rows: Sequence[int]) -> dict[str, float]:
    """The mean of each figure over the parts that have it, each weighted by its rows."""
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [(part[name], n) for part, n in zip(parts, rows) if name in part and n]
        means[name] = sum(value * n for value, n in found) / sum(n for _, n in found)
    return means
