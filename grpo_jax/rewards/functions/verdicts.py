"""What a row gets where a reward took too long to judge it, or died of it.

Most rewards then say nothing (NaN). One that judges what a model wrote must not: nothing is better than the score of a
wrong answer, so that a completion that breaks its judge would be reinforced.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def worst(score: float | str) -> Callable[[F], F]:
    """Mark a function with the score of a row that could not be judged: a number, or the option that holds it."""

    def mark(function: F) -> F:
        function.__dict__["worst"] = score
        return function

    return mark


def worst_of(function: Callable[..., Any]) -> float:
    """The score of a row that the function could not judge; NaN: none."""
    score = getattr(getattr(function, "func", function), "worst", math.nan)
    if not isinstance(score, str):
        return float(score)
    options = getattr(function, "keywords", {})
    return float(
        options[score] if score in options else inspect.signature(function).parameters[score].default
    )
