"""What reward functions log beside their scores: columns of the completions table, and metrics.

A function that names them, or takes `**columns`, gets these keyword arguments (TRL 1.16's):

    trainer_state               a copy of what the trainer passed to `RewardPool.score`, made once per call of `score`
    log_extra(column, values)   values for a column of the completions table, one per row
    log_metric(name, value)     a number; a metric is the mean of all numbers logged for it in a step

A function that names it also gets

    reward_timeout              seconds after which this call is ended (for an async function: cancelled)

A function is called on one group of rows at a time, so log a mean rather than a sum as a metric. What a failed call
has logged is dropped with its scores; the rows are then retried one by one and log again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_jax.rewards.pool.log_entries import entry, kind_of

ALWAYS = frozenset({"trainer_state", "log_extra", "log_metric", "reward_timeout"})
"""Arguments that every function may take, whatever the columns of the data."""


class Logs:
    """What one call of a function logs. Lives in the worker."""

    def __init__(self) -> None:
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    @property
    def callables(self) -> dict[str, Any]:
        """The functions that the reward function gets as keyword arguments."""
        return {"log_extra": self.log_extra, "log_metric": self.log_metric}

    @property
    def content(self) -> dict[str, Any]:
        """The logs, for the reply."""
        return {"extras": self.extras, "metrics": self.metrics}

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """Log values for a column, one per row. Several calls for one column append."""
        if isinstance(values, str | bytes | Mapping):
            raise TypeError(
                f"log_extra('{column}', ...) takes a list, one value per row; not {kind_of(values)}"
            )
        self.extras.setdefault(str(column), []).extend(values)

    def log_metric(self, name: str, value: Any) -> None:
        """Log one number. NaN and infinities are left out of the mean, for groups that have no value."""
        number = entry(value)
        if number == "nan":
            return
        if not isinstance(number, float):
            raise TypeError(f"log_metric('{name}', ...) takes a number, not {kind_of(value)}")
        self.metrics.setdefault(str(name), []).append(number)

    def wrong(self, rows: int) -> str | None:
        """An error message if a column does not have one value per row, else None. For when the call has ended."""
        for column, values in self.extras.items():
            if len(values) != rows:
                return f"log_extra('{column}', ...) was given {len(values)} values for {rows} completions"
        return None


class LogBook:
    """What the functions `names` logged for B rows. Lives in the trainer; the order of arrival changes nothing."""

    def __init__(self, names: Sequence[str], rows: int):
        self.names, self.rows = names, rows
        self._extras: dict[tuple[int, str], list[Any]] = {}  # (function, column) -> [B]
        self._metrics: dict[str, list[float]] = {}

    def add(self, function: int, rows: Sequence[int], reply: Mapping[str, Any]) -> None:
        """Add the logs of one call, from its reply."""
        for column, values in reply["extras"].items():
            whole = self._extras.setdefault((function, column), [None] * self.rows)
            for row, value in zip(rows, values):
                whole[row] = value
        for name, values in reply["metrics"].items():
            self._metrics.setdefault(name, []).extend(values)

    def extras(self) -> dict[str, list[Any]]:
        """Column -> [B], None where nothing was logged. Columns that several functions log: `function/column`."""
        writers = Counter(column for _, column in self._extras)
        return {
            column if writers[column] == 1 else f"{self.names[function]}/{column}": self._extras[
                function, column
            ]
            for function, column in sorted(self._extras)
        }

    def metrics(self) -> dict[str, float]:
        """Metric -> mean of all numbers logged for it, by any function."""
        return {name: sum(sorted(values)) / len(values) for name, values in sorted(self._metrics.items())}
