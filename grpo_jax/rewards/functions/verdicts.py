"""The score of a row for which a reward timed out or crashed.

Most rewards then give no score (NaN). A reward that computes with the model's text must give its worst one instead:
with NaN, a completion that crashes the reward would fare better than a wrong answer, and be reinforced.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def worst(score: float | str) -> Callable[[F], F]:
    """Mark a function with the score of a row for which it fails: a number, or the name of the option that holds it."""

    def mark(function: F) -> F:
        function.__dict__["worst"] = score
        return function

    return mark


def worst_of(function: Callable[..., Any]) -> float:
    """The score of a row for which the function fails; NaN for a function that is not marked."""
    score = getattr(getattr(function, "func", function), "worst", math.nan)
    if not isinstance(score, str):
        return float(score)
    options = getattr(function, "keywords", {})
    return float(
        options[score] if score in options else inspect.signature(function).parameters[score].default
    )
