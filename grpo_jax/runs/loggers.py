"""Where the metrics of each step go: every logger of a run gets every step.

A logger for another service is a class with the three methods of `MetricsLogger` and a row of `LOGGERS`.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from grpo_jax.runs.files import is_local, write_atomically
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.zero_spread import ZeroSpreadNote


class MetricsLogger(Protocol):
    """What a run asks of a logger. Only the process that writes the run has loggers."""

    def start(self, step: int) -> None:
        """The run goes on after `step` steps (0: a new run). Steps after it that were logged before a crash are void:
        they are logged again."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The metrics of one step, which counts from 1: numbers, strings, or arrays of one element by name."""

    def close(self) -> None:
        """The run is over, or has failed. May be called more than once, and without `start`."""


class JsonlLogger:
    """`metrics.jsonl`, one line a step, in a local folder or a bucket."""

    def __init__(self, run: RunFolder):
        self._run = run
        self._file = run.metrics_file

    def start(self, step: int) -> None:
        """Drop the lines after `step`, and a half-written one."""
        if self._file.exists():
            kept = [row for row in read_metrics(self._run) if row["step"] <= step]
            write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line, `step` first; it is in the file when this returns. Not-a-number becomes null."""
        row = {"step": int(step)} | {name: _plain(value) for name, value in metrics.items()}
        line = json.dumps(row) + "\n"
        if is_local(self._file):
            with self._file.open("a") as file:
                file.write(line)
        else:  # objects cannot grow: write the file anew (some hundred bytes a step)
            before = self._file.read_text() if self._file.exists() else ""
            write_atomically(self._file, before + line)

    def close(self) -> None:
        """Nothing to do: each line is written at once."""


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` so far; one that a kill left half-written is left out."""
    text = run.metrics_file.read_text() if run.metrics_file.exists() else ""
    rows = [_parsed(line) for line in text.splitlines()]
    return [row for row in rows if row is not None]


LOGGERS: list[Callable[[RunFolder, Mapping[str, Any]], MetricsLogger]] = [
    lambda folder, settings: JsonlLogger(folder),
    lambda folder, settings: ZeroSpreadNote(lambda: read_metrics(folder), settings),
]
"""Folder and settings of a run -> a logger, in the order in which they are called. The terminal's progress line
is called after them."""


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _plain(value: Any) -> Any:
    """A JSON value for a number, a string, or an array or device scalar of one element."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
