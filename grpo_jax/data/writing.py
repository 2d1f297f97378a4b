"""Writes rows as the bytes of a file, by its suffix, for `files.py` to read."""

import datetime
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grpo_jax.errors import UserError

Row = dict[str, Any]


def check_suffix(path: str) -> None:
    """Raise UserError if a path's suffix names no format that can be written."""
    if os.path.splitext(path)[1] not in WRITERS:
        raise UserError(f"{path}: its name must end in {' or '.join(WRITERS)}")


def written(rows: Sequence[Row], path: str) -> bytes:
    """The content of the file `path` with these rows. Raises UserError for values that its format cannot hold."""
    check_suffix(path)
    try:
        return WRITERS[os.path.splitext(path)[1]](rows)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot hold these rows: {_first_line(error)}") from None


def jsonl(rows: Iterable[Row]) -> bytes:
    """One JSON object per line. Raises TypeError for a value without a form in JSON, such as an image's bytes."""
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
        # By columns, because a table made from rows has only the columns of its first row.
        table = pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in names})
        pyarrow.parquet.write_table(table, buffer)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{_first_line(error)}; write .jsonl") from None
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {".jsonl": jsonl, ".parquet": _parquet}
