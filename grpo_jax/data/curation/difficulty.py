"""Difficulty of problems: the share of a model's samples that solve one, its level, and filtering by it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from grpo_jax.data.curation.outcome import CurationOutcome, Fault, Row, sieved

RATE, LEVEL = "pass_rate", "difficulty"
"""The columns that graded rows get."""


def level(rate: float | None, easy: float = 0.75, hard: float = 0.25) -> str:
    """`easy` from the rate `easy` on, `hard` up to the rate `hard`, `medium` between; `unknown` without a rate.

    SRPO uses these three levels of pass@k but does not publish the bounds; these are ours.
    """
    if rate is None or math.isnan(rate):
        return "unknown"
    return "easy" if rate >= easy else "hard" if rate <= hard else "medium"


def graded(
    rows: Sequence[Row], rates: Sequence[float | None], measured: Sequence[bool], easy: float, hard: float
) -> CurationOutcome:
    """Every measured row with its pass rate and level. The other rows are dropped."""
    marked = [
        {**row, RATE: rate, LEVEL: level(rate, easy, hard)} for row, rate in zip(rows, rates, strict=True)
    ]
    faults: list[Fault | None] = [
        None if done else ("too_long", "its prompt is longer than max_prompt_length") for done in measured
    ]
    levels = Counter(row[LEVEL] for row, done in zip(marked, measured) if done)
    known = [rate for rate, done in zip(rates, measured) if done and rate is not None]
    figures: dict[str, Any] = {
        "levels": {name: levels[name] for name in ("easy", "medium", "hard", "unknown") if levels[name]},
        "mean_pass_rate": sum(known) / len(known) if known else None,
        "all_solved": sum(rate == 1 for rate in known),
        "none_solved": sum(rate == 0 for rate in known),
    }
    return sieved(rows, faults, marked, figures)


def within(rows: Sequence[Row], low: float | None, high: float | None, column: str = RATE) -> CurationOutcome:
    """The rows with low < rate < high; None is no bound. Bounds are strict, as in Open-R1."""
    return sieved(rows, [_outside(row.get(column), low, high, column) for row in rows])


def _outside(rate: Any, low: float | None, high: float | None, column: str) -> Fault | None:
    number = _number(rate)
    if number is None:
        return "no_rate", f"{column} = {rate!r}"
    if low is not None and number <= low:
        return "too_low", f"{column} = {number:g}"
    return ("too_high", f"{column} = {number:g}") if high is not None and number >= high else None


def _number(rate: Any) -> float | None:
    try:
        number = math.nan if isinstance(rate, bool) else float(rate)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
