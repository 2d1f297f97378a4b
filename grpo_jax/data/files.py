"""Rows from files and folders, here or in the cloud (etils.epath). A bad row is named by file and line."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from grpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from etils import epath

Row = dict[str, Any]


def read_folder(folder: "epath.Path", split: str) -> list[Row] | None:
    """The rows of `<split>.<suffix>` (or `<split>-00000-of-00002.<suffix>`, ...) in a folder.

    None when the folder holds no data file at all. UserError, with the splits that exist, when it holds
    others.
    """
    files: dict[str, list[epath.Path]] = {}
    for file in sorted(folder.iterdir()):
        # A .json of another name is a description (dataset_infos.json) more often than a split.
        if file.suffix in READERS and (file.suffix != ".json" or file.stem == split):
            files.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
    if not files:
        return None
    if split not in files:
        close = nearest(split, files)
        raise UserError(f"dataset '{folder}': no split '{split}'{close}; it has {', '.join(files)}")
    suffixes = {file.suffix for file in files[split]}
    if len(suffixes) > 1:  # the same rows twice, most likely
        both = ", ".join(sorted(suffixes))
        raise UserError(f"dataset '{folder}': '{split}' is there as {both}; name one file")
    return [row for file in files[split] for row in read_file(file)]


def read_file(file: "epath.Path") -> list[Row]:
    """The rows of one file, read by its suffix. UserError for another suffix or a broken row."""
    if file.suffix not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"dataset '{file}': its name must end in one of {known}")
    return list(READERS[file.suffix](file))


def _jsonl(file: "epath.Path") -> Iterator[Row]:
    # Split on newline bytes only: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield _object(_parse(line, f"{file}:{number}"), f"{file}:{number}")


def _json(file: "epath.Path") -> Iterator[Row]:
    rows = _parse(file.read_bytes(), str(file))
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of objects; for one object a line, name the file .jsonl")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{file}, row {number}")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{where}: not valid JSON: {error}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with named columns, found {type(value).__name__}")
    return value


def _csv(file: "epath.Path") -> Iterator[Row]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error}") from None
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in table:
            if None in row or None in row.values():
                columns = len(table.fieldnames or ())
                raise UserError(
                    f"{file}:{table.line_num}: the row does not have the header's {columns} columns"
                )
            yield dict(row)
    except csv.Error as error:
        raise UserError(f"{file}:{table.line_num}: not valid CSV: {error}") from None


def _parquet(file: "epath.Path") -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with file.open("rb") as stream:
        try:
            yield from pyarrow.parquet.read_table(stream).to_pylist()
        except pyarrow.ArrowException as error:
            raise UserError(f"{file}: not a readable Parquet file: {error}") from None


READERS: dict[str, Callable[["epath.Path"], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
