"""The verbs `grpo-jax data ...`: rows in; rows and an account of them out. What they do to rows is in
`data/curation/`."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from grpo_jax.data.curation.cleaning import clean
from grpo_jax.data.curation.contamination import HeldOut, decontaminate
from grpo_jax.data.curation.difficulty import within
from grpo_jax.data.curation.duplicates import dedup
from grpo_jax.data.curation.faults import normal
from grpo_jax.data.curation.outcome import Outcome
from grpo_jax.data.layouts import Layout, arrange_one, recognise
from grpo_jax.data.questions import questions
from grpo_jax.data.sources import load_rows
from grpo_jax.data.writing import check_suffix, jsonl, written
from grpo_jax.errors import UserError
from grpo_jax.runs.files import check_writable, is_local, write_atomically

Row = dict[str, Any]

_SHOWN = 5  # overlapping rows in the table; the report has them all


def data_command(verb: str, config: Any) -> int:
    """Do one of the verbs."""
    if verb == "show":
        from grpo_jax.showing import show

        return show(config)
    check_place(config)
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


def _clean(config: Any, rows: list[Row]) -> Outcome:
    layout = recognise(rows[0], config.prompt_column, config.layout)
    return clean(rows, layout, config.purpose, config.allow or ())


def _decontaminate(config: Any, rows: list[Row]) -> Outcome:
    held_out = [item for source in config.against for item in _held_out(config, source)]
    texts = asked(rows, config.prompt_column, config.layout)
    how = config.ngram, config.boilerplate, config.share, config.drop
    return decontaminate(rows, texts, held_out, *how)


def _held_out(config: Any, source: str) -> list[HeldOut]:
    rows = load_rows(source, config.against_split, seed=config.seed)
    try:
        return [HeldOut(source, number, text) for number, text in enumerate(asked(rows), start=1)]
    except UserError as fault:
        raise UserError(f"against = {source}: {fault}") from None


def _dedup(config: Any, rows: list[Row]) -> Outcome:
    layout = recognise(rows[0], config.prompt_column, config.layout)
    texts = asked(rows, config.prompt_column, config.layout)
    answers = [_answer(row, layout) for row in rows]
    return dedup(rows, texts, answers, config.threshold, config.ngram)


def _answer(row: Row, layout: Layout) -> str | None:
    try:
        answer = arrange_one(row, layout).get("answer")
    except ValueError:
        return None
    return None if answer is None else normal(answer)


def _grade(config: Any, rows: list[Row]) -> Outcome:
    from grpo_jax.grading import grade

    return grade(config, rows)


def _filter(config: Any, rows: list[Row]) -> Outcome:
    names = dict.fromkeys(name for row in rows for name in row)
    if config.column not in names:
        raise UserError(
            f"column = {config.column!r}: the data have no such column among {', '.join(names)}; "
            "`grpo-jax data grade` makes pass_rate"
        )
    return within(rows, config.low, config.high, config.column)


DOES: dict[str, Callable[[Any, list[Row]], Outcome]] = {
    "clean": _clean,
    "decontaminate": _decontaminate,
    "dedup": _dedup,
    "grade": _grade,
    "filter": _filter,
}


def asked(rows: Sequence[Row], prompt_column: str = "prompt", layout: str | None = None) -> list[str]:
    """Each row's question as text; '' for a row that has none."""
    found = recognise(rows[0], prompt_column, layout)
    return [_asked(row, found) for row in rows]


def _asked(row: Row, layout: Layout) -> str:
    if layout.question:
        return "\n".join(questions(row, layout))
    try:
        return "\n".join(turn["content"] for turn in arrange_one(row, layout)["prompt"])
    except ValueError:
        return ""


# ---- what they leave ----


def places(out: str) -> dict[str, str]:
    """What is written, by what it is; the rows last, so that they are there only when all is."""
    return {"dropped": f"{out}.dropped.jsonl", "report": f"{out}.report.json", "rows": out}


def check_place(config: Any) -> None:
    """UserError when the result cannot be written, said before the work."""
    check_suffix(config.out)
    if _same_file(config.out, config.data):
        raise UserError(f"out = {config.out}: these are the data themselves; give another file")
    for path in places(config.out).values():
        if epath.Path(path).exists() and not config.overwrite:
            raise UserError(f"{path}: is there already; give another file, or --overwrite")
        check_writable(path)


def _same_file(out: str, data: str) -> bool:
    if not (is_local(out) and is_local(data) and Path(out).exists() and Path(data).exists()):
        return False
    return Path(out).samefile(data)


def write(verb: str, config: Any, outcome: Outcome) -> None:
    """The rows, the dropped rows and the report."""
    settings = config.model_dump(mode="json")
    report = {"verb": verb, "data": config.data, "out": config.out, **outcome.report(), "settings": settings}
    contents: dict[str, bytes] = {
        "rows": written(outcome.kept, config.out),
        "dropped": jsonl(_plain(item.written()) for item in outcome.dropped),
        "report": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for what, path in places(config.out).items():
        write_atomically(path, contents[what])
    if verb == "grade":
        from grpo_jax.grading import forget

        forget(config)


def _plain(value: Any) -> Any:
    """A dropped row as JSON can hold it: an image is told by its size."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else value


def tell(verb: str, config: Any, outcome: Outcome) -> None:
    """The account as a table, and where the files are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "rows", "for example")
    for line in _lines(outcome):
        # As text: what stands in brackets would be taken for rich's own markup.
        table.add_row(*(Text(str(cell)) for cell in line))
    console = Console()
    console.print(f"{verb}: {config.data}", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for what, path in places(config.out).items():
        console.print(f"{what}: {path}", soft_wrap=True, highlight=False, markup=False)


Line = tuple[Any, ...]


def _lines(outcome: Outcome) -> Iterator[Line]:
    yield "read", f"{outcome.read:,}"
    yield "kept", f"{len(outcome.kept):,}"
    for reason, count in outcome.reasons.items():
        first = next(item for item in outcome.dropped if item.reason == reason)
        yield f"dropped: {reason}", f"{count:,}", f"row {first.row}: {first.found}"
    figures = outcome.figures
    for kind, numbers in figures.get("stripped", {}).items():
        yield f"stripped: {kind}", f"{len(numbers):,}", f"row {numbers[0]}"
    if "flagged" in figures:
        yield from _about_overlap(figures)
    for level, count in figures.get("levels", {}).items():
        yield level, f"{count:,}"
    if figures.get("mean_pass_rate") is not None:
        yield "mean pass rate", f"{figures['mean_pass_rate']:.3f}"


def _about_overlap(figures: dict[str, Any]) -> Iterator[Line]:
    yield "held out", f"{figures['held_out']:,}"
    yield "overlapping", f"{figures['overlapping']:,}"
    yield "leaks", f"{figures['leaks']:,}"
    for item in figures["flagged"][:_SHOWN]:
        share = "the same text" if item["same"] else f"{item['shared']} of {item['of']} n-grams"
        where = f"{item['against']}, row {item['against_row']}"
        yield f"  row {item['row']}", "", f"{share} ({where}): {item['example']}"
    yield "boilerplate only", f"{figures['boilerplate_only']:,}"
    for gram, count in list(figures["boilerplate"].items())[:_SHOWN]:
        yield "  boilerplate", f"in {count:,}", gram
