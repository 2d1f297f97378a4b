"""Checks one number that a reward function returned or logged."""

import math
from typing import Any


def entry(score: Any) -> float | str | None:
    """One row's score as JSON: a finite number, None, "nan" for a number that is not finite, or an error message."""
    if score is None:
        return None
    if isinstance(score, str | bytes):
        return f"returned {kind_of(score)} where a number belongs"
    try:
        number = float(score)
    except Exception:
        return f"returned {kind_of(score)} where a number belongs"
    return number if math.isfinite(number) else "nan"


def kind_of(value: Any) -> str:
    """A value for a message: its type and the beginning of its repr."""
    return f"{type(value).__name__} {value!r}"[:80]
