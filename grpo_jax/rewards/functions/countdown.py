"""Countdown: reach the target with the given numbers, each once, and + - * /."""

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.expressions import parse
from grpo_jax.rewards.functions.text import last_block, text_of


def countdown(
    prompts: list[Any],
    completions: list[Any],
    numbers: list[Any] | None = None,
    *,
    target: list[Any],
    nums: list[Any] | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 if the last `<answer>` reaches the target with exactly the given numbers, otherwise 0.0.

    Args:
        numbers: the integers to use, one list per row; published data sets call the column `nums`.
        target: the integer to reach exactly.

    `expressions.py` defines what an expression is. `= target` may follow it; any other value there scores 0.0.

    Raises:
        ValueError: there is neither `numbers` nor `nums`.
    """
    given = given_numbers(numbers, nums, "countdown")
    return [float(solves(text_of(c), n, t)) for c, n, t in zip(completions, given, target)]


def given_numbers(numbers: list[Any] | None, nums: list[Any] | None, reward: str) -> list[Any]:
    """Each row's numbers, from the column that has them. Raises ValueError if there is neither column."""
    if numbers is None or nums is None:
        given = numbers if nums is None else nums
    else:
        given = [first if first is not None else second for first, second in zip(numbers, nums)]
    if given is None:
        raise ValueError(f"{reward} needs a column 'numbers' (or 'nums') beside 'target'")
    return given


def solves(text: str, numbers: Iterable[Any], target: Any) -> bool:
    """Whether the last `<answer>` block of the text reaches the target with the given numbers."""
    block = last_block(text, "answer")
    if block is None:
        return False
    goal = Fraction(str(target))
    written, equals, claimed = block[1].partition("=")
    expression = parse(written)
    if expression is None or expression.value != goal:
        return False
    if equals and not _states(claimed, goal):
        return False
    return Counter(expression.numbers) == Counter(int(n) for n in numbers)


def _states(claimed: str, goal: Fraction) -> bool:
    """Whether what follows `=` is a single number equal to the goal."""
    claim = parse(claimed)
    return claim is not None and len(claim.numbers) == 1 and claim.value == goal
