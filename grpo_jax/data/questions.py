"""Reads and changes a row's question in its original columns, so that the row keeps its layout."""

from collections.abc import Callable, Iterator
from typing import Any

from grpo_jax.data.layouts import Layout, Row
from grpo_jax.data.nested import field, has_field, with_field


def questions(row: Row, layout: Layout) -> Iterator[str]:
    """The texts of a row's question: those of the user."""
    value = _question(row, layout)
    if isinstance(value, str):
        yield value
    for turn in value if isinstance(value, list) else ():
        if _of_user(turn):
            yield str(turn.get("content", turn.get("value")) or "")


def with_questions(row: Row, layout: Layout, change: Callable[[str], str]) -> Row:
    """The row with `change` applied to each text of its question, in the same columns."""
    value, column = _question(row, layout), str(layout.question)
    if isinstance(value, str):
        return with_field(row, column, change(value))
    if not isinstance(value, list):
        return row
    return with_field(row, column, [_changed(turn, change) for turn in value])


def _question(row: Row, layout: Layout) -> Any:
    known = layout.question is not None and has_field(row, layout.question)
    return field(row, layout.question) if known and layout.question else None


def _changed(turn: Any, change: Callable[[str], str]) -> Any:
    if not _of_user(turn):
        return turn
    key = "content" if "content" in turn else "value"
    return {**turn, key: change(turn[key])} if isinstance(turn.get(key), str) else turn


def _of_user(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")
