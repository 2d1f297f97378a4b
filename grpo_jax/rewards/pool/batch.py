"""One step's scoring: the units left to run, the scores so far, and the failures."""

import math
import pickle
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.text import text_of
from grpo_jax.rewards.load import describe
from grpo_jax.rewards.pool.logs import LogBook
from grpo_jax.rewards.pool.serialize import pack_data

VERBS = {"errors": "failed", "timeouts": "timed out", "nans": "gave no number"}
"""Kind of fault (a counter of `Scores`) -> the verb that messages use for it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of B rows by n functions, and counts of failed rows by function name.

    values: float64 [B, n]. NaN where a function returned None or failed; for a function with a worst verdict
        (`verdicts.py`), that verdict where it failed.
    errors: rows lost because the function raised, crashed, or returned something other than numbers.
    timeouts: rows lost because it took too long.
    nans: rows for which it returned NaN or an infinity.
    retried: units that failed and were retried row by row (a row that then succeeds is in no other count).
    extras: columns for the completions table from `log_extra`, [B] each, None where nothing was logged.
    metrics: means of the numbers given to `log_metric`.
    """

    values: np.ndarray
    errors: dict[str, int]
    timeouts: dict[str, int]
    nans: dict[str, int]
    retried: dict[str, int]
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """One function (its index) on some rows."""

    function: int
    rows: Sequence[int]
    retry: bool = False


class RewardBatch:
    """The units of B rows and n functions that are still to run, and the scores of those that have been.

    `waiting` holds the units of plain functions, which run one at a time; `concurrent` those of async functions. What
    runs in this process is apart from both.

    Args:
        names: names of the functions, [n].
        rows: B.
        messages: by function and kind of fault, the first message. Written here; the `RewardPool` keeps it.
        stop: raise `UserError` at the first lost row instead of counting it.
        async_functions: indices of the async functions.
        state: the trainer's state, for every function that takes it.
        in_process: indices of the functions that run in this process. They score all rows at once.
        worst: the score of a row that a function lost, [n]; None scores it NaN.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        rows: int,
        messages: dict[str, dict[str, str]],
        stop: bool,
        async_functions: Set[int] = frozenset(),
        state: Any = None,
        in_process: Set[int] = frozenset(),
        worst: Sequence[float] | None = None,
    ):
        self.names, self.rows, self.messages, self.stop = names, rows, messages, stop
        self.async_functions = async_functions
        self.worst = worst or [math.nan] * len(names)
        zeros = lambda: dict.fromkeys(names, 0)
        values = np.full((rows, len(names)), np.nan)
        self.scores = Scores(values=values, errors=zeros(), timeouts=zeros(), nans=zeros(), retried=zeros())
        self.logs = LogBook(names, rows)
        self.trainer_state = state
        self.state = None if len(in_process) == len(names) else self._packed(state, "trainer_state")
        self.in_process: dict[int, list[int]] = {each: [] for each in sorted(in_process)}  # -> its rows
        self._retries: list[Unit] = []  # of these functions
        self.data: dict[
            str, list[Any]
        ] = {}  # arguments of every function, [B] each, None for rows not added yet
        self.waiting: deque[Unit] = deque()
        self.concurrent: deque[Unit] = deque()

    def add(self, first: int, data: Mapping[str, Sequence[Any]], idle: Set[int] = frozenset()) -> None:
        """Add rows from `first` on. `data` holds the keyword arguments of every function, "prompts" and "completions"
        among them. The functions (indices) in `idle` do not score these rows."""
        for name, column in data.items():
            self.data.setdefault(name, [None] * self.rows)[first : first + len(column)] = column
        for group in runs_of_equal(data["prompts"]):
            rows = range(first + group.start, first + group.stop)
            for function in sorted(set(range(len(self.names))) - idle):
                if function in self.in_process:
                    self.in_process[function].extend(rows)
                else:
                    self._queue(function).append(Unit(function, rows))

    def units_in_process(self) -> list[Unit]:
        """The units that are to run in this process now: all rows of a function, or single rows after it failed."""
        first = [Unit(function, sorted(rows)) for function, rows in self.in_process.items() if rows]
        units, self._retries = first + self._retries, []
        for rows in self.in_process.values():
            rows.clear()
        return units

    def _queue(self, function: int) -> "deque[Unit] | list[Unit]":
        if function in self.in_process:
            return self._retries
        return self.concurrent if function in self.async_functions else self.waiting

    def request(self, units: Mapping[int, Unit], known: bytes | None) -> bytes:
        """The message that asks a worker for these units, by number. It leaves out a state that the worker knows."""
        packed = [(number, self._unit(unit)) for number, unit in units.items()]
        return pickle.dumps((None if known == self.state else self.state, packed))

    def _unit(self, unit: Unit) -> bytes:
        columns = f"the columns for '{self.names[unit.function]}'"
        return self._packed((unit.function, self.arguments(unit)), columns)

    def arguments(self, unit: Unit) -> dict[str, list[Any]]:
        """The columns of the unit's rows."""
        return {name: [column[row] for row in unit.rows] for name, column in self.data.items()}

    def _packed(self, value: Any, name: str) -> bytes:
        try:
            return pack_data(value)
        except Exception as fault:
            raise UserError(
                f"rewards: {name} cannot be sent to a worker process: {describe(fault)}"
            ) from fault

    def accept(self, unit: Unit, reply: Mapping[str, Any]) -> None:
        """Record a unit's answer: one entry per row, and what the function logged."""
        self.logs.add(unit.function, unit.rows, reply)
        for row, entry in zip(unit.rows, reply["values"]):
            if entry == "nan":
                self._lose(unit, row, "nans", "returned NaN or an infinity")
            elif isinstance(entry, str):
                self._lose(unit, row, "errors", entry)
            else:
                self.scores.values[row, unit.function] = math.nan if entry is None else entry

    def fail(self, unit: Unit, kind: str, why: str) -> None:
        """Record that a unit failed: put its rows back one by one, or give its row up if this was the retry."""
        name = self.names[unit.function]
        self.messages[name].setdefault(kind, why)
        if unit.retry:
            self.scores.values[unit.rows[0], unit.function] = self.worst[unit.function]
            self._lose(unit, unit.rows[0], kind, why)
            return
        self.scores.retried[name] += 1
        self._queue(unit.function).extend(
            Unit(unit.function, range(row, row + 1), retry=True) for row in unit.rows
        )

    def requeue(self, units: Iterable[Unit]) -> None:
        """Run each of these units by itself: they were lost together, and any one may be at fault."""
        self.waiting.extend(units)

    def finished(self) -> Scores:
        """The scores, with the logged columns and metrics."""
        return replace(self.scores, extras=self.logs.extras(), metrics=self.logs.metrics())

    def _lose(self, unit: Unit, row: int, kind: str, why: str) -> None:
        name = self.names[unit.function]
        self.messages[name].setdefault(kind, why)
        getattr(self.scores, kind)[name] += 1
        if self.stop:
            completion = shortened(text_of(self.data["completions"][row]))
            raise UserError(
                f"rewards: '{name}' {VERBS[kind]} on the completion {completion!r}: {why}\n"
                "fix the function, or set on_reward_error to count"
            )


def runs_of_equal(prompts: Sequence[Any]) -> list[range]:
    """The groups: runs of consecutive equal prompts, as ranges of rows."""
    starts = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
    return [range(a, b) for a, b in zip(starts, starts[1:] + [len(prompts)])]


def shortened(text: str, most: int = 120) -> str:
    """`text`, reduced to its beginning and end if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
