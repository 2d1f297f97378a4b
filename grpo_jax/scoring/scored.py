"""The rewards of a rollout, on the host. Groups can be selected and joined. No jax here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A rollout's rewards."""

    rewards: np.ndarray  # [P,G] float32, `base` plus the overlong penalty; advantages are computed from it
    base: np.ndarray  # [P,G] float32, the weighted sum; NaN where no function gave a score
    values: np.ndarray  # [P,G,n] float32, the score of each function; NaN for None
    completions: list[str]  # P * G texts without special tokens
    failures: dict[str, int]  # rows lost to errors, timeouts and NaNs, by "rewards/{name}/{kind}"
    extras: Columns  # columns that functions logged, P * G values each; None for rows without a value
    success_functions: (
        np.ndarray
    )  # [P] int, the first function that scores each prompt: it decides what a success is
    metrics: dict[str, float]  # metrics that functions logged, and the mean of the overlong penalty

    @property
    def successes(self) -> np.ndarray:
        """[P,G] float32: 1 where the judging function gave 1 or more, 0 where less, NaN where it gave no score."""
        verdicts = np.take_along_axis(self.values, self.success_functions[:, None, None], axis=2)[..., 0]
        return np.where(np.isnan(verdicts), verdicts, (verdicts >= 1).astype(np.float32))

    def unscored(self, real: int) -> tuple[int, int] | None:
        """The first row (prompt, sample) of the first `real` prompts for which every function returned None; None if
        there is none, or if rows were lost to failures, which are counted and reported as such."""
        rows = np.argwhere(np.isnan(self.values[:real]).all(axis=-1))
        return None if self.failures or not len(rows) else (int(rows[0][0]), int(rows[0][1]))

    def take(self, indices: np.ndarray) -> "Scored":
        """The groups at `indices`, without failures and metrics, which belong to the whole rollout."""
        G = self.rewards.shape[1]
        pick = lambda column: [value for i in indices for value in column[i * G : (i + 1) * G]]
        return Scored(
            rewards=self.rewards[indices],
            base=self.base[indices],
            values=self.values[indices],
            completions=pick(self.completions),
            failures={},
            extras={name: pick(column) for name, column in self.extras.items()},
            success_functions=self.success_functions[indices],
            metrics={},
        )

    @staticmethod
    def join(parts: "Sequence[Scored]") -> "Scored":
        """Concatenate groups. Failures are summed; a metric is the mean of the parts that have it."""
        rows = [part.rewards.size for part in parts]
        return Scored(
            rewards=np.concatenate([part.rewards for part in parts]),
            base=np.concatenate([part.base for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            completions=[text for part in parts for text in part.completions],
            failures=dict(sum((Counter(part.failures) for part in parts), Counter())),
            extras=stacked([part.extras for part in parts], rows),
            success_functions=np.concatenate([part.success_functions for part in parts]),
            metrics=means([part.metrics for part in parts], rows),
        )


def stacked(parts: Sequence[Columns], rows: Sequence[int]) -> Columns:
    """Concatenate columns of parts with `rows` rows each; None in the rows of a part that lacks a column."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: [value for part, n in zip(parts, rows) for value in part.get(name, [None] * n)]
        for name in names
    }


def means(parts: Sequence[dict[str, float]], rows: Sequence[int]) -> dict[str, float]:
    """The mean of each metric over the parts that have it, weighted by their rows."""
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        weighted = [(part[name], n) for part, n in zip(parts, rows) if name in part and n]
        means[name] = sum(value * n for value, n in weighted) / sum(n for _, n in weighted)
    return means
