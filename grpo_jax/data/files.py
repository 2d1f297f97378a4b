"""Reads rows from files and folders, local or in the cloud (etils.epath). Errors name the file and the line."""

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
"""The deepest nesting of lists and objects. Python's own recursion limit, below 1,000, would cause errors later."""

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # a surrogate, perhaps without the other one of its pair


def read_folder(folder: "epath.Path", split: str) -> list[Row] | None:
    """The rows of `<split>.<suffix>` (or `<split>-00000-of-00002.<suffix>`, ...) in a folder.

    None if the folder holds no data file at all.

    Raises:
        UserError: the folder holds other splits; the message lists them.
    """
    files = _splits(folder, split)
    if not files:
        return None
    if split not in files:
        close = nearest(split, files)
        raise UserError(f"dataset '{folder}': no split '{split}'{close}; it has {', '.join(files)}")
    suffixes = {file.suffix for file in files[split]}
    if len(suffixes) > 1:  # probably the same rows in two formats
        both = ", ".join(sorted(suffixes))
        raise UserError(f"dataset '{folder}': '{split}' is there as {both}; name one file")
    return [row for file in files[split] for row in read_file(file)]


def files_of(folder: "epath.Path", split: str) -> list["epath.Path"]:
    """The files that `read_folder` reads for a split; empty if the folder has no such split."""
    return _splits(folder, split).get(split, [])


def _splits(folder: "epath.Path", wanted: str) -> dict[str, list["epath.Path"]]:
    found: dict[str, list[epath.Path]] = {}
    for file in sorted(folder.iterdir()):
        # A .json file with another name is usually a description (dataset_infos.json), not a split.
        if file.suffix in READERS and (file.suffix != ".json" or file.stem == wanted):
            found.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
    return found


def read_file(file: "epath.Path") -> list[Row]:
    """The rows of one file, read by its suffix. Raises UserError for an unknown suffix or a broken row."""
    if file.suffix not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"dataset '{file}': its name must end in one of {known}")
    return list(READERS[file.suffix](file))


def _jsonl(file: "epath.Path") -> Iterator[Row]:
    # Split on newline bytes only: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            place = f"{file}:{number}"
            yield _row(_parse(line, place), place, _is_odd(line))


def _json(file: "epath.Path") -> Iterator[Row]:
    text = file.read_bytes()
    rows, odd = _parse(text, str(file)), _is_odd(text)
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of objects; for one object a line, name the file .jsonl")
    for number, row in enumerate(rows, start=1):
        yield _row(row, f"{file}, row {number}", odd)


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise UserError(f"{place}: {_too_deep()}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """An object as a dict. Raises ValueError if a name is there twice: `json` would silently keep the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"one object has {_twice([name for name, _ in pairs])!r} twice; keep one of them")
    return row


def _twice(names: Sequence[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


def _row(value: Any, place: str, odd: bool) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object with named columns, found {type(value).__name__}")
    if odd and (fault := _fault(value)):
        raise UserError(f"{place}: {fault}")
    return value


def _is_odd(text: bytes) -> bool:
    """Whether a JSON text may have a fault that `_fault` finds. Few do, and that check takes as long as parsing."""
    return text.count(b"[") + text.count(b"{") > DEEPEST or bool(_HALF.search(text))


def _fault(row: Row) -> str | None:
    """Why a row of valid JSON cannot be used; None if it can."""
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
        raise UserError(f"{file}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
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
        # Not all are ArrowExceptions: a broken footer raises OSError, and text that is not UTF-8, or a date outside
        # Python's range, raises when rows are made.
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            message = str(error).strip().partition("\n")[0]
            raise UserError(f"{file}: not a readable Parquet file: {message}") from None


READERS: dict[str, Callable[["epath.Path"], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
