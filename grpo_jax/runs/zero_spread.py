"""Says once when a run has nothing to learn from: in several steps in a row, no group has rewards that differ."""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

STEPS = 3
"""So many steps in a row are needed; one or two may be chance."""


class ZeroSpreadNote:
    """A `MetricsLogger` that prints one line on stderr, once in a run, however often the run is resumed.

    history: the metrics of the steps so far, read when the run starts or resumes.
    """

    def __init__(self, history: Callable[[], Sequence[Mapping[str, Any]]], settings: Mapping[str, Any]):
        self._history, self._settings = history, settings
        self._in_a_row, self._said = 0, False

    def start(self, step: int) -> None:
        """Count as if the steps up to `step` had been logged here."""
        flat = [_is_flat(row) for row in self._history() if row["step"] <= step]
        streaks = [len(list(steps)) if value else 0 for value, steps in groupby(flat)]
        self._said = max(streaks, default=0) >= STEPS
        self._in_a_row = streaks[-1] if streaks else 0

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Count the step, and print the line if it is the last of `STEPS` in a row."""
        self._in_a_row = self._in_a_row + 1 if _is_flat(metrics) else 0
        if self._in_a_row >= STEPS and not self._said:
            self._said = True
            print(_line(step, self._settings), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to do."""


def _is_flat(metrics: Mapping[str, Any]) -> bool:
    return metrics.get("frac_reward_zero_std") == 1


def _line(step: int, settings: Mapping[str, Any]) -> str:
    dynamic = "" if settings.get("dynamic_sampling") else ", or dynamic_sampling"
    return (
        f"note: in steps {step - STEPS + 1}-{step} every group's rewards were all equal, so nothing was learned; try a "
        f"higher temperature, more num_generations, easier prompts, another reward{dynamic} (docs/read_a_run.md)"
    )
