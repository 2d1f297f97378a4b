"""Fields inside columns: `reward_model.ground_truth` names the field ground_truth of the column reward_model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo_jax.errors import UserError, nearest

Row = dict[str, Any]
DEEPEST = 3  # levels of which a message lists the names


def field(row: Mapping[str, Any], name: str) -> Any:
    """The column `name`, or the field of a column that `name` means. Raises KeyError if there is neither."""
    if name in row:
        return row[name]
    first, _, rest = name.partition(".")
    if not rest or not isinstance(row.get(first), Mapping):
        raise KeyError(name)
    return field(row[first], rest)


def has_field(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has this column, or this field of a column."""
    try:
        field(row, name)
    except KeyError:
        return False
    return True


def with_field(row: Mapping[str, Any], name: str, value: Any) -> Row:
    """The row with another value of this column, or of this field of a column, which it has."""
    if name in row:
        return {**row, name: value}
    first, _, rest = name.partition(".")
    return {**row, first: with_field(row[first], rest, value)}


def nested_names(row: Mapping[str, Any], depth: int = DEEPEST) -> list[str]:
    """The names of the fields inside columns, in the row's order."""
    return list(_nested(row, depth))


def _nested(row: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, Mapping) and depth > 1:
            inside = {f"{name}.{key}": inner for key, inner in value.items()}
            yield from inside
            yield from _nested(inside, depth - 1)


def with_columns(rows: Sequence[Row], columns: Mapping[str, str] | None) -> list[Row]:
    """Rows with more columns, {name: column, or field of a column}.

    Raises:
        UserError: a row has no such column or field.
    """
    if not columns:
        return list(rows)
    return [row | _taken(row, number, columns) for number, row in enumerate(rows, start=1)]


def _taken(row: Row, number: int, columns: Mapping[str, str]) -> Row:
    for column in columns.values():
        if not has_field(row, column):
            known = [*row, *nested_names(row)]
            raise UserError(
                f"columns: row {number} has no {column!r}{nearest(column, known)} among {', '.join(known)}"
            )
    return {name: field(row, column) for name, column in columns.items()}
