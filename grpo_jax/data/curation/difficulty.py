"""How hard a problem is: the share of a model's samples that solve it, a word for that, and a window of it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from grpo_jax.data.curation.outcome import Fault, Outcome, Row, sieved

RATE, LEVEL = "pass_rate", "difficulty"
"""The columns that a graded row gets."""


def level(rate: float | None, easy: float = 0.75, hard: float = 0.25) -> str:
    """`easy` from one rate on, `hard` up to the other, `medium` between; `unknown` when nothing was judged.

    SRPO grades by pass@k in these three levels and does not say where they part; the bounds are ours.
    """
    if rate is None or math.isnan(rate):
        return "unknown"
    return "easy" if rate >= easy else "hard" if rate <= hard else "medium"


def graded(
    rows: Sequence[Row], rates: Sequence[float | None], measured: Sequence[bool], easy: float, hard: float
) -> Outcome:
    """Every measured row with its pass rate and level; the others are dropped."""
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


def within(rows: Sequence[Row], low: float | None, high: float | None, column: str = RATE) -> Outcome:
    """The rows with low < rate < high; None: no bound. Bounds are strict, as Open-R1's are."""
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
