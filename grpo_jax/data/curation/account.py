"""The summary of a curation outcome, as lines of a table: label, number of rows, example."""

from collections.abc import Iterator
from typing import Any

from grpo_jax.data.curation.outcome import CurationOutcome

Line = tuple[Any, ...]

_SHOWN = 5  # overlapping rows to show; the report has all of them


def lines(outcome: CurationOutcome) -> Iterator[Line]:
    """The lines that every verb has, then those of single verbs."""
    yield "read", f"{outcome.read:,}"
    yield "kept", f"{len(outcome.kept):,}"
    for reason, count in outcome.reasons.items():
        first = next(item for item in outcome.dropped if item.reason == reason)
        yield f"dropped: {reason}", f"{count:,}", f"row {first.row}: {first.found}"
    figures = outcome.figures
    for kind, numbers in figures.get("stripped", {}).items():
        yield f"stripped: {kind}", f"{len(numbers):,}", f"row {numbers[0]}"
    if "flagged" in figures:
        yield from _about_held_out(figures)
        yield from _about_overlap(figures)
    for level, count in figures.get("levels", {}).items():
        yield level, f"{count:,}"
    if figures.get("mean_pass_rate") is not None:
        yield "mean pass rate", f"{figures['mean_pass_rate']:.3f}"


def _about_held_out(figures: dict[str, Any]) -> Iterator[Line]:
    """How many held-out problems were compared, and which rows could not be."""
    if rows := figures["unreadable"]:
        yield "unreadable", f"{len(rows):,}", f"row {rows[0]}"
    yield "held out", f"{figures['held_out']:,}"
    if items := figures["held_out_unreadable"]:
        yield "  unreadable", f"{len(items):,}", f"{items[0]['against']}, row {items[0]['against_row']}"
    for method, count in figures["held_out_short"].items():
        yield "  short", f"{count:,}", f"found {method}"


def _about_overlap(figures: dict[str, Any]) -> Iterator[Line]:
    yield "overlapping", f"{figures['overlapping']:,}"
    yield "leaks", f"{figures['leaks']:,}"
    for item in figures["flagged"][:_SHOWN]:
        share = "the same text" if item["same"] else f"{item['shared']} of {item['of']} n-grams"
        problem = f"{item['against']}, row {item['against_row']}"
        yield f"  row {item['row']}", "", f"{share} ({problem}): {item['example']}"
    yield "boilerplate only", f"{figures['boilerplate_only']:,}"
    for gram, count in list(figures["boilerplate"].items())[:_SHOWN]:
        yield "  boilerplate", f"in {count:,}", gram
