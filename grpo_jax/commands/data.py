"""The verbs `grpo-jax data ...`: rows in; rows and an account of them out. What they do to rows is in
`data/curation/`."""

import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from grpo_jax.data.curation.account import lines
from grpo_jax.data.curation.cleaning import clean
from grpo_jax.data.curation.contamination import COLUMN, HeldOutProblem, decontaminate
from grpo_jax.data.curation.difficulty import LEVEL, RATE, within
from grpo_jax.data.curation.duplicates import dedup
from grpo_jax.data.curation.faults import normal
from grpo_jax.data.curation.outcome import CurationOutcome
from grpo_jax.data.curation.reading import asked
from grpo_jax.data.curation.words import words
from grpo_jax.data.files import files_of
from grpo_jax.data.layouts import Layout, arrange_one, recognise
from grpo_jax.data.sources import load_rows
from grpo_jax.data.writing import check_suffix, jsonl, written
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.numbers import parse_number
from grpo_jax.runs.files import check_writable, is_local, write_atomically

Row = dict[str, Any]


def data_command(verb: str, config: Any) -> int:
    """Do one of the verbs."""
    if verb == "show":
        from grpo_jax.commands.data_show import show

        return show(config)
    check_place(verb, config)
    rows = load(config)
    outcome = DOES[verb](config, rows)
    if _is_writer(verb):
        write(verb, config, outcome)
        tell(verb, config, outcome)
    return 0


def load(config: Any) -> list[Row]:
    """The rows that the settings name."""
    return load_rows(config.data, config.split, seed=config.seed)[: config.rows or None]


def _is_writer(verb: str) -> bool:
    """Only grading may run on many hosts, and only it has loaded JAX."""
    if verb != "grade":
        return True
    from grpo_jax.sharding import hosts

    return hosts.is_writer()


# ---- what the verbs do ----


def _clean(config: Any, rows: list[Row]) -> CurationOutcome:
    layout = recognise(rows[0], config.prompt_column, config.layout)
    return clean(rows, layout, config.purpose, config.allow or (), value_of)


def value_of(answer: object) -> str:
    r"""The same text for answers of one value, `0.5` and `\frac{1}{2}`, read as the rewards read numbers."""
    number = parse_number(str(answer).strip().strip("$"))
    return normal(answer) if number is None else str(number)


def _decontaminate(config: Any, rows: list[Row]) -> CurationOutcome:
    _check_free(config, rows, [COLUMN], "rename it, or give all held-out sets at once, --against ONE,OTHER")
    held_out = [item for source in config.against for item in _held_out(config, source)]
    texts = asked(rows, config.prompt_column, config.layout)
    rules = config.ngram, config.boilerplate, config.share, config.drop
    return decontaminate(rows, texts, held_out, *rules)


def _held_out(config: Any, source: str) -> list[HeldOutProblem]:
    rows = load_rows(source, config.against_split, seed=config.seed)
    try:
        texts = asked(rows)
    except UserError as fault:
        raise UserError(f"against = {source}: {fault}") from None
    if not any(map(words, texts)):
        raise UserError(
            f"against = {source}: none of its {len(rows)} rows asks anything that can be read; put the questions, "
            "as text, into a column prompt"
        )
    return [HeldOutProblem(source, number, text) for number, text in enumerate(texts, start=1)]


def _dedup(config: Any, rows: list[Row]) -> CurationOutcome:
    layout = recognise(rows[0], config.prompt_column, config.layout)
    texts = asked(rows, config.prompt_column, config.layout)
    answers = [_answer(row, layout) for row in rows]
    return dedup(rows, texts, answers, config.threshold, config.ngram)


def _answer(row: Row, layout: Layout) -> str | None:
    try:
        answer = arrange_one(row, layout).get("answer")
    except ValueError:
        return None
    return None if answer is None else value_of(answer)


def _grade(config: Any, rows: list[Row]) -> CurationOutcome:
    _check_free(config, rows, [RATE, LEVEL], "rename it, or grade the file that was graded before")
    from grpo_jax.commands.data_grade import grade

    return grade(config, rows)


def _filter(config: Any, rows: list[Row]) -> CurationOutcome:
    names = dict.fromkeys(name for row in rows for name in row)
    if config.column not in names:
        raise UserError(
            f"column = {config.column!r}: the data have no such column among {', '.join(names)}; "
            "`grpo-jax data grade` makes pass_rate"
        )
    return within(rows, config.low, config.high, config.column)


DOES: dict[str, Callable[[Any, list[Row]], CurationOutcome]] = {
    "clean": _clean,
    "decontaminate": _decontaminate,
    "dedup": _dedup,
    "grade": _grade,
    "filter": _filter,
}


def _check_free(config: Any, rows: list[Row], made: list[str], remedy: str) -> None:
    """UserError when the data have a column of their own where the verb would write what it found."""
    if own := [name for name in made if any(name in row for row in rows)]:
        raise UserError(f"data = {config.data}: the column {' and '.join(own)} would be replaced; {remedy}")


# ---- what they leave ----


def places(out: str) -> dict[str, str]:
    """What is written, by what it is; the rows last, so that they are there only when all is."""
    return {"dropped": f"{out}.dropped.jsonl", "report": f"{out}.report.json", "rows": out}


def check_place(verb: str, config: Any) -> None:
    """UserError when the result cannot be written, or would be written over what is read; said before the work."""
    check_suffix(config.out)
    results = list(places(config.out).values())
    notes = [f"{config.out}.partial.json"] if verb == "grade" else []
    read = _read(config)
    for path in (*results, *notes):
        if what := next((what for what, file in read if _same_file(path, file)), None):
            raise UserError(f"out = {config.out}: {path} is read here, as {what}; give another file")
    for path in results:
        if epath.Path(path).exists() and not config.overwrite:
            raise UserError(f"{path}: is there already; give another file, or --overwrite")
        check_writable(path)


def _read(config: Any) -> list[tuple[str, str]]:
    """(setting, file) of all that the verb reads."""
    sources = [("data", config.data, config.split)]
    sources += [("against", spec, config.against_split) for spec in getattr(config, "against", ())]
    return [(what, os.fspath(file)) for what, spec, split in sources for file in _files(spec, split)]


def _files(spec: str, split: str) -> Sequence[os.PathLike[str]]:
    """The files that a source consists of; one that is none, such as a task, names a file that is not there."""
    path = epath.Path(spec).expanduser()
    try:
        if not path.is_dir():
            return [path]
        # A clone of a hub's repository says by itself which of its files make a split: it may be any.
        return files_of(path, split) or [file for file in Path(path).rglob("*") if file.is_file()]
    except (ImportError, OSError):  # it cannot be reached, and loading it will say so
        return []


def _same_file(one: str, other: str) -> bool:
    if not (is_local(one) and is_local(other)):
        return one == other
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def write(verb: str, config: Any, outcome: CurationOutcome) -> None:
    """The rows, the dropped rows and the report."""
    settings = config.model_dump(mode="json")
    report = {"verb": verb, "data": config.data, "out": config.out, **outcome.report(), "settings": settings}
    contents: dict[str, bytes] = {
        "rows": written(outcome.kept, config.out),
        "dropped": jsonl(_plain(item.written()) for item in outcome.dropped),
        "report": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    # First of all, so that an interruption never leaves old rows beside the new report.
    epath.Path(config.out).unlink(missing_ok=True)
    for what, path in places(config.out).items():
        write_atomically(path, contents[what])
    if verb == "grade":
        from grpo_jax.commands.data_grade import forget

        forget(config)


_IN_JSON = (str, int, float, datetime.date, datetime.time)  # `jsonl` writes them all


def _plain(value: Any) -> Any:
    """A dropped row as JSON can hold it: an image as its size, a value that JSON has no form for as its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, _IN_JSON) else str(value)


def tell(verb: str, config: Any, outcome: CurationOutcome) -> None:
    """The account as a table, and where the files are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "rows", "for example")
    for line in lines(outcome):
        # As text: what stands in brackets would be taken for rich's own markup.
        table.add_row(*(Text(str(cell)) for cell in line))
    console = Console()
    console.print(f"{verb}: {config.data}", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for what, path in places(config.out).items():
        console.print(f"{what}: {path}", soft_wrap=True, highlight=False, markup=False)
