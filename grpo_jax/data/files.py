"""Rows from files and folders, here or in the cloud (etils.epath). A bad row is named by file and line."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from etils import epath

Row = dict[str, Any]

DEEPEST = 100
"""Lists and objects inside of one another; Python's own limit, which is less than 1,000, is met further on."""

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # perhaps half of a character that JSON spells as two


def read_folder(folder: "epath.Path", split: str) -> list[Row] | None:
    """The rows of `<split>.<suffix>` (or `<split>-00000-of-00002.<suffix>`, ...) in a folder.

    None when the folder holds no data file at all. UserError, with the splits that exist, when it holds
    others.
    """
    files = _splits(folder, split)
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


def files_of(folder: "epath.Path", split: str) -> list["epath.Path"]:
    """The files that `read_folder` reads of one that holds such a split; none of another."""
    return _splits(folder, split).get(split, [])


def _splits(folder: "epath.Path", wanted: str) -> dict[str, list["epath.Path"]]:
    found: dict[str, list[epath.Path]] = {}
    for file in sorted(folder.iterdir()):
        # A .json of another name is a description (dataset_infos.json) more often than a split.
        if file.suffix in READERS and (file.suffix != ".json" or file.stem == wanted):
            found.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
    return found


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
            where = f"{file}:{number}"
            yield _row(_parse(line, where), where, _is_odd(line))


def _json(file: "epath.Path") -> Iterator[Row]:
    text = file.read_bytes()
    rows, odd = _parse(text, str(file)), _is_odd(text)
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of objects; for one object a line, name the file .jsonl")
    for number, row in enumerate(rows, start=1):
        yield _row(row, f"{file}, row {number}", odd)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise UserError(f"{where}: {_too_deep()}") from None
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{where}: not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """An object. ValueError where two of its names are one: the last would win, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one object has {_twice([name for name, _ in pairs])!r} twice; keep one of them")
    return found


def _twice(names: Sequence[str]) -> str:
    return next(name for at, name in enumerate(names) if name in names[:at])


def _row(value: Any, where: str, odd: bool) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with named columns, found {type(value).__name__}")
    if odd and (fault := _fault(value)):
        raise UserError(f"{where}: {fault}")
    return value


def _is_odd(text: bytes) -> bool:
    """Whether a JSON text may hold what `_fault` finds: most do not, and looking takes as long as parsing."""
    return text.count(b"[") + text.count(b"{") > DEEPEST or bool(_HALF.search(text))


def _fault(row: Row) -> str | None:
    """Why a row that is JSON is nothing to work with."""
    level: list[Any] = [row]
    for _ in range(DEEPEST + 1):
        level = [inner for one in level for inner in _inside(one)]
    if level:
        return _too_deep()
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end].encode("unicode_escape").decode()
        return f"holds {half}, half of a character, which no text can; write the whole one, or take it out"
    return None


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep() -> str:
    return f"lists or objects inside of one another, more than {DEEPEST} deep; write them as text"


def _csv(file: "epath.Path") -> Iterator[Row]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error}") from None
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = table.fieldnames or ()
        if len(set(names)) < len(names):
            raise UserError(f"{file}: the header has {_twice(names)!r} twice; rename one of the columns")
        for row in table:
            if None in row or None in row.values():
                raise UserError(
                    f"{file}:{table.line_num}: the row does not have the header's {len(names)} columns"
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
        # Not all are ArrowExceptions: a broken footer is an OSError, and text that is no UTF-8, or a date that Python
        # has no form for, is met when rows are made.
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            said = str(error).strip().partition("\n")[0]
            raise UserError(f"{file}: not a readable Parquet file: {said}") from None


READERS: dict[str, Callable[["epath.Path"], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
