"""Rows to the bytes of a file, by its suffix: what `files.py` reads, written."""

import datetime
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grpo_jax.errors import UserError

Row = dict[str, Any]


def check_suffix(path: str) -> None:
    """UserError for a name that does not say in which form rows are written."""
    if os.path.splitext(path)[1] not in WRITERS:
        raise UserError(f"{path}: its name must end in {' or '.join(WRITERS)}")


def written(rows: Sequence[Row], path: str) -> bytes:
    """The rows as `path`, by its suffix, holds them. UserError for values that it cannot hold."""
    check_suffix(path)
    try:
        return WRITERS[os.path.splitext(path)[1]](rows)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot hold these rows: {_first_line(error)}") from None


def jsonl(rows: Iterable[Row]) -> bytes:
    """One object a line. TypeError for a value that JSON has no form for, such as an image's bytes."""
    return "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON; write .parquet")


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    buffer = io.BytesIO()
    try:
        # A column at a time: a table made of rows has the columns of its first row only.
        table = pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in names})
        pyarrow.parquet.write_table(table, buffer)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{_first_line(error)}; write .jsonl") from None
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {".jsonl": jsonl, ".parquet": _parquet}
