"""Arithmetic: problems such as 12 + 34 * 5 - 6. The reward `gsm8k` scores them, comparing numbers exactly."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from grpo_jax.data.tasks import common
from grpo_jax.errors import UserError

NAME = "arithmetic"
FORMS = {
    "think": "What is {}? Work it out inside <think> </think>, then give the number alone inside "
    "<answer> </answer>, like <answer>7</answer>.",
    "number": "What is {}? Answer with the number alone.",
}
"""What a prompt asks for. The number alone is for small models, which hardly ever write the tags."""


@dataclass(frozen=True)
class ArithmeticOptions:
    """The options of `arithmetic:terms=2-4,max=99,ops=+-*,form=think,size=1000`, with these defaults."""

    terms: tuple[int, int] = (2, 4)
    """Fewest and most numbers in a problem, 2 to 10; `3` or `2-4`."""
    max: int = 99
    """Numbers are drawn from 1..max."""
    ops: str = "+-*"
    """The operations."""
    form: str = "think"
    """The form of the answer, a key of FORMS."""
    size: int = 1000
    """Rows in a split."""


_READERS = {
    "terms": common.span(2, 10),
    "max": common.whole,
    "ops": common.some_of("+-*"),
    "form": common.one_of(FORMS),
    "size": common.whole,
}


def make_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (messages), `expression`, `answer` (both text) and `terms`."""
    common.check_split(NAME, split)
    chosen = ArithmeticOptions(**common.read_options(NAME, options, _READERS))
    return [make_row(chosen, split, seed, index) for index in range(chosen.size)]


def make_row(options: ArithmeticOptions, split: str, seed: int, index: int) -> dict[str, Any]:
    """Row `index` of a split. Raises UserError if the options leave (almost) no problem for the split."""
    rng = common.source(NAME, seed, split, index)
    for _ in range(common.ATTEMPTS):
        numbers, signs = _draw(rng, options)
        expression = str(numbers[0]) + "".join(f" {sign} {n}" for sign, n in zip(signs, numbers[1:]))
        if common.split_of(same(numbers, signs)) == split:
            answer = str(value(numbers, signs))
            return {
                "prompt": [{"role": "user", "content": FORMS[options.form].format(expression)}],
                "expression": expression,
                "answer": answer,
                "terms": len(numbers),
            }
    raise UserError(
        f"{NAME}: too few problems for the split '{split}' with {options}; widen terms, max or ops"
    )


def value(numbers: Sequence[int], signs: Sequence[str]) -> int:
    """The value of numbers with a sign between each two; products come first."""
    return sum(map(prod, _summands(numbers, signs)))


def same(numbers: Sequence[int], signs: Sequence[str]) -> str:
    """One text for all problems that differ only in the order of summands and factors, so that they share a split."""
    summands = sorted([sign, *sorted(factors)] for sign, *factors in _summands(numbers, signs))
    return " ".join("*".join(map(str, summand)) for summand in summands)


def _summands(numbers: Sequence[int], signs: Sequence[str]) -> list[list[int]]:
    """The factors of each summand; the first one is its sign, 1 or -1."""
    summands = [[1, numbers[0]]]
    for sign, number in zip(signs, numbers[1:]):
        if sign == "*":
            summands[-1].append(number)
        else:
            summands.append([1 if sign == "+" else -1, number])
    return summands


def _draw(rng: random.Random, options: ArithmeticOptions) -> tuple[list[int], list[str]]:
    numbers = [1 + common.below(rng, options.max) for _ in range(common.within(rng, options.terms))]
    return numbers, [options.ops[common.below(rng, len(options.ops))] for _ in numbers[1:]]
