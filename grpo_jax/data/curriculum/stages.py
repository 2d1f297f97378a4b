"""The stages of a curriculum: what is drawn in each, and what ends it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Step = Sequence[float]
"""What a step says about the training: the mean reward, and the share of completions cut at the limit."""


@dataclass(frozen=True)
class Trigger:
    """What ends a stage, whichever comes first; without any it never ends.

    Args:
        step: so many steps of the run are done.
        epochs: the stage's prompts were drawn so many times, on average.
        plateau: the mean reward of the last `window` steps is not this much above that of the `window` before.
        clipped: over the last `window` steps, this share of the completions was cut at the limit, or more.
    """

    step: int | None = None
    epochs: float | None = None
    plateau: float | None = None
    clipped: float | None = None
    window: int = 20

    def fires(self, done: int, drawn: int, prompts: int, recent: Sequence[Step]) -> bool:
        """After `done` steps of the run, with `drawn` of the stage's `prompts` and its `recent` steps."""
        return (
            (self.step is not None and done >= self.step)
            or (self.epochs is not None and drawn >= Fraction(str(self.epochs)) * prompts)
            or self._is_flat([reward for reward, _ in recent])
            or self._is_cut([clipped for _, clipped in recent])
        )

    def _is_flat(self, rewards: Sequence[float]) -> bool:
        n = self.window
        if self.plateau is None or len(rewards) < 2 * n:
            return False
        return float(np.mean(rewards[-n:]) - np.mean(rewards[-2 * n : -n])) < self.plateau

    def _is_cut(self, clipped: Sequence[float]) -> bool:
        n = self.window
        return self.clipped is not None and len(clipped) >= n and float(np.mean(clipped[-n:])) >= self.clipped


@dataclass(frozen=True, eq=False)
class Stage:
    """What is drawn until the stage ends."""

    name: str
    rows: tuple[np.ndarray, ...]
    """int64, of each domain: the rows that take part."""
    weights: tuple[float, ...]
    """Of each domain: its share of the draws, in any unit."""
    until: Trigger = Trigger()

    @property
    def prompts(self) -> int:
        """How many take part."""
        return sum(len(rows) for rows, weight in zip(self.rows, self.weights) if weight)
