"""One step's scoring: what is left to run, what has been found, and what went wrong."""

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
"""The kinds of fault, as the counters of `Scores` are called, and how a sentence says them."""


@dataclass(frozen=True)
class Scores:
    """What the functions said, and what went wrong, in rows per function name.

    values: float64 [B, n], NaN where a function returned None or failed; the worst verdict where one that judges was
        lost (`verdicts.py`).
    errors: rows lost because the function raised, died, or returned something else than numbers.
    timeouts: rows lost because it took too long.
    nans: rows for which it returned NaN or an infinity.
    retried: units that failed and were tried again row by row (a row healed by that is in no other count).
    extras: columns for the completions table from `log_extra`, [B] each, None where nothing was given.
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
    """One function (its index) on some neighbouring rows."""

    function: int
    rows: range
    retry: bool = False


class Batch:
    """B rows and n functions on their way to `scores`: rows come in groups, the pool takes units and brings answers.

    `waiting` holds units that are run one at a time, `together` those of async functions, which wait side by side.

    Args:
        names: of the functions, [n].
        rows: B.
        messages: by function and kind of fault, the first sentence seen; written here, kept by the pool.
        stop: raise `UserError` at the first row that is lost, instead of counting it.
        patient: the functions (indices) that are async.
        state: the trainer's state, for every function that takes it, as it is now.
        worst: what a row gets from each function that took too long for it or died of it, [n]; None: NaN.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: int,
        messages: dict[str, dict[str, str]],
        stop: bool,
        patient: Set[int] = frozenset(),
        state: Any = None,
        worst: Sequence[float] | None = None,
    ):
        self.names, self.rows, self.messages, self.stop = names, rows, messages, stop
        self.patient = patient
        self.worst = worst or [math.nan] * len(names)
        none = lambda: dict.fromkeys(names, 0)
        self.scores = Scores(np.full((rows, len(names)), np.nan), none(), none(), none(), none())
        self.logs = LogBook(names, rows)
        self.state = self._packed(state, "trainer_state")
        self.data: dict[
            str, list[Any]
        ] = {}  # arguments of every function, [B] each, None where nothing came yet
        self.waiting: deque[Unit] = deque()
        self.together: deque[Unit] = deque()

    def add(self, first: int, data: Mapping[str, Sequence[Any]], idle: Set[int] = frozenset()) -> None:
        """Rows from `first` on: keyword arguments of every function; "prompts" and "completions" among them. `idle`
        functions are not asked."""
        for name, column in data.items():
            self.data.setdefault(name, [None] * self.rows)[first : first + len(column)] = column
        for group in runs_of_equal(data["prompts"]):
            rows = range(first + group.start, first + group.stop)
            for function in sorted(set(range(len(self.names))) - idle):
                self._queue(function).append(Unit(function, rows))

    def _queue(self, function: int) -> deque[Unit]:
        return self.together if function in self.patient else self.waiting

    def request(self, units: Mapping[int, Unit], known: bytes | None) -> bytes:
        """The message to a worker that asks for these units, by number; `known` is the state that it has."""
        packed = [(number, self._unit(unit)) for number, unit in units.items()]
        return pickle.dumps((None if known == self.state else self.state, packed))

    def _unit(self, unit: Unit) -> bytes:
        rows = slice(unit.rows.start, unit.rows.stop)
        arguments = {name: list(column[rows]) for name, column in self.data.items()}
        return self._packed((unit.function, arguments), f"the columns for '{self.names[unit.function]}'")

    def _packed(self, value: Any, what: str) -> bytes:
        try:
            return pack_data(value)
        except Exception as fault:
            raise UserError(
                f"rewards: {what} cannot be sent to a worker process: {describe(fault)}"
            ) from fault

    def accept(self, unit: Unit, reply: Mapping[str, Any]) -> None:
        """Take a unit's answer: an entry a row, and what the function logged."""
        self.logs.add(unit.function, unit.rows, reply)
        for row, entry in zip(unit.rows, reply["values"]):
            if entry == "nan":
                self._lose(unit, row, "nans", "returned NaN or an infinity")
            elif isinstance(entry, str):
                self._lose(unit, row, "errors", entry)
            else:
                self.scores.values[row, unit.function] = math.nan if entry is None else entry

    def fail(self, unit: Unit, kind: str, why: str) -> None:
        """A whole unit failed, by itself: put its rows back one by one, or give its only row up."""
        name = self.names[unit.function]
        self.messages[name].setdefault(kind, why)
        if unit.retry:
            self.scores.values[unit.rows.start, unit.function] = self.worst[unit.function]
            self._lose(unit, unit.rows.start, kind, why)
            return
        self.scores.retried[name] += 1
        self._queue(unit.function).extend(
            Unit(unit.function, range(row, row + 1), retry=True) for row in unit.rows
        )

    def again(self, units: Iterable[Unit]) -> None:
        """Units that were lost together, nobody knows through which: each is run once more by itself."""
        self.waiting.extend(units)

    def finished(self) -> Scores:
        """The scores, with all that was logged."""
        return replace(self.scores, extras=self.logs.extras(), metrics=self.logs.metrics())

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
