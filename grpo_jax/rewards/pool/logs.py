"""What reward functions say beside their scores: columns of the completions table, and metrics.

A function that names them, or takes `**columns`, gets these keyword arguments (TRL 1.16's):

    trainer_state               what the trainer gave to `RewardPool.score`: a copy, one for each call of it
    log_extra(column, values)   values for a column of the completions table, one a row
    log_metric(name, value)     a number; a metric is the mean of all numbers given for it in a step

One that names it also gets

    reward_timeout              seconds after which this call is given up (for an async function: its waiting)

A function is called on one group of rows at a time, so a metric had better be a mean than a sum. What a call
that failed had logged is dropped with its scores; the rows then tried one by one log for themselves.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_jax.rewards.pool.log_entries import entry, kind_of

ALWAYS = frozenset({"trainer_state", "log_extra", "log_metric", "reward_timeout"})
"""Arguments that every function may ask for, whatever the columns of the data."""


class Logs:
    """What one call of a function on some rows says. Lives in the worker."""

    def __init__(self) -> None:
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    @property
    def callables(self) -> dict[str, Any]:
        """The arguments for the function."""
        return {"log_extra": self.log_extra, "log_metric": self.log_metric}

    @property
    def content(self) -> dict[str, Any]:
        """What goes into the reply."""
        return {"extras": self.extras, "metrics": self.metrics}

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """Values for a column, one a row; calls for the same column follow one another."""
        if isinstance(values, str | bytes | Mapping):
            raise TypeError(
                f"log_extra('{column}', ...) takes a list, one value a row; not {kind_of(values)}"
            )
        self.extras.setdefault(str(column), []).extend(values)

    def log_metric(self, name: str, value: Any) -> None:
        """One number. NaN and infinities are left out of the mean: a group may have nothing to say."""
        number = entry(value)
        if number == "nan":
            return
        if not isinstance(number, float):
            raise TypeError(f"log_metric('{name}', ...) takes a number, not {kind_of(value)}")
        self.metrics.setdefault(str(name), []).append(number)

    def wrong(self, rows: int) -> str | None:
        """What is wrong with the columns, now that the call has ended: they must have one value a row."""
        for column, values in self.extras.items():
            if len(values) != rows:
                return f"log_extra('{column}', ...) was given {len(values)} values for {rows} completions"
        return None


class LogBook:
    """What all functions, `names`, said about B rows. Lives in the trainer; the order of arrival changes nothing."""

    def __init__(self, names: Sequence[str], rows: int):
        self.names, self.rows = names, rows
        self._extras: dict[tuple[int, str], list[Any]] = {}  # (function, column) -> [B]
        self._metrics: dict[str, list[float]] = {}

    def add(self, function: int, rows: range, reply: Mapping[str, Any]) -> None:
        """The logs of one call, from its reply."""
        for column, values in reply["extras"].items():
            everywhere = self._extras.setdefault((function, column), [None] * self.rows)
            everywhere[rows.start : rows.stop] = values
        for name, values in reply["metrics"].items():
            self._metrics.setdefault(name, []).extend(values)

    def extras(self) -> dict[str, list[Any]]:
        """column -> [B], None where nothing was said. A column of several functions: `function/column` for each."""
        writers = Counter(column for _, column in self._extras)
        return {
            column if writers[column] == 1 else f"{self.names[function]}/{column}": self._extras[
                function, column
            ]
            for function, column in sorted(self._extras)
        }

    def metrics(self) -> dict[str, float]:
        """name -> mean of what was given, by whichever function."""
        return {name: sum(sorted(values)) / len(values) for name, values in sorted(self._metrics.items())}
