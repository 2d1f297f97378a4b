"""Summarises a data set: its columns, and the lengths of its texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.data.curation.outcome import Row


@dataclass(frozen=True)
class Column:
    """One column of a data set."""

    name: str
    kinds: str
    """The types of its values, the most frequent first."""
    filled: int
    """The number of rows with a value."""
    example: str
    """The first value, on one line."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts, in characters or tokens."""

    shortest: int
    median: int
    most: int
    """The 95th percentile."""
    longest: int


def columns(rows: Sequence[Row], width: int = 60) -> list[Column]:
    """All columns of the rows, in the order of first appearance."""
    return [_column(name, rows, width) for name in dict.fromkeys(name for row in rows for name in row)]


def _column(name: str, rows: Sequence[Row], width: int) -> Column:
    values = [value for row in rows if not _empty(value := row.get(name))]
    often = [kind for kind, _ in Counter(map(_kind, values)).most_common()]
    example = " ".join(str(values[0]).split()) if values else ""
    short = example if len(example) <= width else f"{example[: width - 1]}…"
    return Column(name, " or ".join(often) or "nothing", len(values), short)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _kind(value: Any) -> str:
    names = {str: "text", bool: "yes or no", int: "whole number", float: "number", dict: "mapping"}
    if isinstance(value, list):
        return f"list of {_kind(value[0])}" if value else "list"
    return names.get(type(value), type(value).__name__)


def lengths(sizes: Sequence[int]) -> Lengths:
    """Statistics of at least one length."""
    ordered = sorted(sizes)
    quantile = lambda share: ordered[min(int(share * len(ordered)), len(ordered) - 1)]
    return Lengths(ordered[0], quantile(0.5), quantile(0.95), ordered[-1])
