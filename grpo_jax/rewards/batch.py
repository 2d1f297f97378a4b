"""One step's scoring: what is left to run, what has been found, and what went wrong."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.rewards.load import describe
from grpo_jax.rewards.packing import pack_arguments
from grpo_jax.rewards.text import text_of

VERBS = {"errors": "failed", "timeouts": "timed out", "nans": "gave no number"}
"""The kinds of fault, as the counters of `Scores` are called, and how a sentence says them."""


@dataclass(frozen=True)
class Scores:
    """What the functions said, and what went wrong, in rows per function name.

    values: float64 [B, n], NaN where a function returned None or failed.
    errors: rows lost because the function raised, died, or returned something else than numbers.
    timeouts: rows lost because it took too long.
    nans: rows for which it returned NaN or an infinity.
    retried: units that failed and were tried again row by row (a row healed by that is in no other count).
    """

    values: np.ndarray
    errors: dict[str, int]
    timeouts: dict[str, int]
    nans: dict[str, int]
    retried: dict[str, int]


@dataclass(frozen=True)
class Unit:
    """One function (its index) on some neighbouring rows."""

    function: int
    rows: range
    retry: bool = False


class Batch:
    """B rows and n functions on their way to `scores`: the pool takes units from `waiting`, brings answers.

    Args:
        names: of the functions, [n].
        data: keyword arguments of every function, each [B]; "prompts" and "completions" among them.
        messages: by function and kind of fault, the first sentence seen; written here, kept by the pool.
        stop: raise `UserError` at the first row that is lost, instead of counting it.
    """

    def __init__(
        self,
        names: Sequence[str],
        data: Mapping[str, Sequence[Any]],
        messages: dict[str, dict[str, str]],
        stop: bool,
    ):
        self.names, self.data, self.messages, self.stop = names, data, messages, stop
        counters = [dict.fromkeys(names, 0) for _ in range(4)]
        self.scores = Scores(np.full((len(data["completions"]), len(names)), np.nan), *counters)
        groups = runs_of_equal(data["prompts"])
        self.waiting = deque(Unit(f, rows) for rows in groups for f in range(len(names)))

    def request(self, unit: Unit) -> bytes:
        """The message to a worker that asks for this unit."""
        rows = slice(unit.rows.start, unit.rows.stop)
        try:
            return pack_arguments(unit.function, {k: list(column[rows]) for k, column in self.data.items()})
        except Exception as fault:
            name = self.names[unit.function]
            raise UserError(f"rewards: the columns for '{name}' cannot be sent: {describe(fault)}") from fault

    def accept(self, unit: Unit, entries: Sequence[Any]) -> None:
        """Take a unit's answer: one entry a row, as `worker.entry` wrote it."""
        for row, entry in zip(unit.rows, entries):
            if entry == "nan":
                self._lose(unit, row, "nans", "returned NaN or an infinity")
            elif isinstance(entry, str):
                self._lose(unit, row, "errors", entry)
            else:
                self.scores.values[row, unit.function] = math.nan if entry is None else entry

    def fail(self, unit: Unit, kind: str, why: str) -> None:
        """A whole unit failed: put its rows back one by one, or give its only row up."""
        name = self.names[unit.function]
        self.messages[name].setdefault(kind, why)
        if unit.retry:
            self._lose(unit, unit.rows.start, kind, why)
            return
        self.scores.retried[name] += 1
        self.waiting.extend(Unit(unit.function, range(row, row + 1), retry=True) for row in unit.rows)

    def _lose(self, unit: Unit, row: int, kind: str, why: str) -> None:
        name = self.names[unit.function]
        self.messages[name].setdefault(kind, why)
        getattr(self.scores, kind)[name] += 1
        if self.stop:
            completion = shortened(text_of(self.data["completions"][row]))
            raise UserError(
                f"rewards: '{name}' {VERBS[kind]} on the completion {completion!r}: {why}\n"
                "mend the function, or set on_reward_error to count"
            )


def runs_of_equal(prompts: Sequence[Any]) -> list[range]:
    """The groups: runs of neighbouring equal prompts, as ranges of rows."""
    starts = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
    return [range(a, b) for a, b in zip(starts, starts[1:] + [len(prompts)])]


def shortened(text: str, most: int = 120) -> str:
    """Beginning and end of a text that is too long for a message."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
