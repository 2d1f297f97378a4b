"""Countdown: reach a target from a few numbers with + - * /, each number used exactly once.

Problems are made backwards: numbers are combined at random until one is left, and that is the target, so a solution
always exists and is part of the row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from grpo_jax.data.tasks import common
from grpo_jax.errors import UserError


@dataclass(frozen=True)
class CountdownOptions:
    """The options of `countdown:numbers=3-4,max=99,target=100,ops=+-*/,size=2000`, with these defaults."""

    numbers: tuple[int, int] = (3, 4)
    """Fewest and most numbers in a problem; `3` or `3-4`."""
    max: int = 99
    """Numbers are drawn from 1..max."""
    target: int = 100
    """Targets lie in 1..target."""
    ops: str = "+-*/"
    """The operations that solutions use and the prompt allows."""
    size: int = 2000
    """Rows in a split."""


_READERS = {
    "numbers": common.span(2, 6),
    "max": common.whole,
    "target": common.whole,
    "ops": common.some_of("+-*/"),
    "size": common.whole,
}


def parse_options(text: str) -> CountdownOptions:
    """Read `name=value,name=value`. Raises UserError for an unknown name or a value out of range."""
    return CountdownOptions(**common.read_options("countdown", text, _READERS))


def make_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (messages), `numbers` (list of int), `target` (int), `solution` (str)."""
    common.check_split("countdown", split)
    chosen = parse_options(options)
    return [make_row(chosen, split, seed, index) for index in range(chosen.size)]


def make_row(options: CountdownOptions, split: str, seed: int, index: int) -> dict[str, Any]:
    """Row `index` of a split. Raises UserError if the options leave (almost) no problem for the split."""
    rng = common.source("countdown", seed, split, index)
    for _ in range(common.ATTEMPTS):
        problem = _draw(rng, options)
        if problem and split_of(*problem[:2]) == split:
            numbers, target, solution = problem
            prompt = ask(numbers, target, options.ops)
            return {"prompt": prompt, "numbers": numbers, "target": target, "solution": solution}
    raise UserError(
        f"countdown: too few problems for the split '{split}' with {options}; widen numbers, max or target"
    )


def split_of(numbers: Sequence[int], target: int) -> str:
    """The split to which a problem belongs, in whatever order its numbers are."""
    return common.split_of(f"{sorted(numbers)}={target}")


def ask(numbers: Sequence[int], target: int, ops: str = "+-*/") -> list[dict[str, str]]:
    """The question as one user message."""
    given = ", ".join(map(str, numbers))
    text = (
        f"Numbers: {given}. Target: {target}.\n"
        "Write an expression that equals the target. Use every number exactly once, and nothing but "
        f"{' '.join(ops)} and parentheses. Work it out inside <think> </think>, then give the bare "
        f"expression inside <answer> </answer>, like <answer>{_example(ops)}</answer>."
    )
    return [{"role": "user", "content": text}]


def _example(ops: str) -> str:
    return f"(6 {ops[0]} 2) {ops[-1]} 1"


def _draw(rng: random.Random, options: CountdownOptions) -> tuple[list[int], int, str] | None:
    """Numbers, target and a solution in which all values are positive integers; None if this attempt failed."""
    numbers = [1 + common.below(rng, options.max) for _ in range(common.within(rng, options.numbers))]
    pool = [(value, str(value)) for value in numbers]
    while len(pool) > 1:
        one, two = (pool.pop(common.below(rng, len(pool))) for _ in range(2))
        (a, left), (b, right) = max(one, two), min(one, two)
        op = options.ops[common.below(rng, len(options.ops))]
        value = _apply(op, Fraction(a), Fraction(b))
        if value is None or value.denominator != 1 or value <= 0:
            return None
        pool.append((int(value), f"({left} {op} {right})"))
    target, solution = pool[0]
    return (numbers, target, solution[1:-1]) if target <= options.target else None


def _apply(op: str, a: Fraction, b: Fraction) -> Fraction | None:
    """`a op b` exactly; None for a division by zero."""
    if op == "/":
        return a / b if b else None
    return a + b if op == "+" else a - b if op == "-" else a * b


def solve(numbers: Sequence[int], target: int, ops: str = "+-*/") -> str | None:
    """An expression that uses every number once and equals `target` exactly; None if there is none.

    Tries all ways to combine two values until one is left, with exact fractions. Complete, and fast up to 5 numbers.
    """
    found = _search([(Fraction(n), str(n)) for n in numbers], Fraction(target), ops)
    return found[1:-1] if found and found.startswith("(") else found


def _search(pool: list[tuple[Fraction, str]], target: Fraction, ops: str) -> str | None:
    if len(pool) == 1:
        return pool[0][1] if pool[0][0] == target else None
    for i, (a, left) in enumerate(pool):
        for j, (b, right) in enumerate(pool):
            rest = [item for k, item in enumerate(pool) if k not in (i, j)]
            for op in ops if i != j else "":
                if op in "+*" and i > j:  # commutative
                    continue
                value = _apply(op, a, b)
                if value is None:
                    continue
                found = _search([*rest, (value, f"({left} {op} {right})")], target, ops)
                if found:
                    return found
    return None
