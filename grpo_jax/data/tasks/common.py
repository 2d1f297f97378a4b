"""Common parts of the tasks that generate rows: options, splits, and reproducible random numbers.

A row depends only on (seed, split, index): a longer data set begins with the shorter one, and any host can make any
row. A hash of the problem decides its split, so training and held-out rows never share a problem, whatever their seeds
and options.
"""

import hashlib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from grpo_jax.errors import UserError, nearest

SPLITS = ("train", "test")
ATTEMPTS = 10_000  # draws for one row before the options are reported as impossible
LARGEST = 1_000_000_000  # the largest whole number in options: `below` draws evenly up to there
_HELD_OUT = 10  # one problem in ten belongs to `test`

Reader = Callable[[str, str, str], Any]  # (task, option, text) -> its value


def read_options(task: str, text: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of `name=value,name=value`. Raises UserError for an unknown name or a value out of range."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in readers:
            options = ", ".join(sorted(readers))
            raise UserError(f"{task}: unknown option '{name}'{nearest(name, readers)}; it has {options}")
        if name in given:
            raise UserError(f"{task}: the option '{name}' is given twice; keep one of them")
        given[name] = readers[name](task, name, value)
    return given


def over(options: str, more: str) -> str:
    """Options with those of `more` added, which replace any with the same name."""
    named = {part.partition("=")[0].strip() for part in more.split(",")}
    kept = (part for part in options.split(",") if part.partition("=")[0].strip() not in named)
    return ",".join([*kept, more])


def whole(task: str, name: str, text: str) -> int:
    """A reader of a whole number, at least 1."""
    if not 1 <= (number := _number(text)) <= LARGEST:
        bounds = f"at least 1 and at most {LARGEST:,}"
        raise UserError(f"{task}: {name}={_short(text)} must be one whole number, {bounds}")
    return number


def _number(text: str) -> int:
    """Digits as a number; 0 for any other text, and for more than 20 digits."""
    return int(text) if text.isdecimal() and len(text) <= 20 else 0


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def span(low: int, high: int) -> Reader:
    """A reader of `3` or `3-4`, within low..high."""

    def read(task: str, name: str, text: str) -> tuple[int, int]:
        first, _, last = text.partition("-")
        ends = first, last or first
        bounds = _number(ends[0]), _number(ends[1])
        if not low <= bounds[0] <= bounds[1] <= high:
            example = f"{name}={low + 1} or {name}={low + 1}-{low + 2}"
            raise UserError(f"{task}: {name}={_short(text)} must lie in {low}..{high}, such as {example}")
        return bounds

    return read


def some_of(letters: str) -> Reader:
    """A reader of one or more of these signs, written together."""

    def read(task: str, name: str, text: str) -> str:
        if not text or set(text) - set(letters):
            example = f"{name}={letters[:2]}"
            raise UserError(
                f"{task}: {name}={text} must be some of {' '.join(letters)}, written together such as {example}"
            )
        return text

    return read


def one_of(words: Collection[str]) -> Reader:
    """One of `words`."""

    def read(task: str, name: str, text: str) -> str:
        if text not in words:
            raise UserError(f"{task}: {name}={text}{nearest(text, words)} must be one of {', '.join(words)}")
        return text

    return read


def check_split(task: str, split: str) -> None:
    """Raise UserError for a split that no task has."""
    if split not in SPLITS:
        raise UserError(f"{task}: no split '{split}'{nearest(split, SPLITS)}; it has {', '.join(SPLITS)}")


def split_of(problem: str) -> str:
    """The split to which a problem belongs; `problem` must be the same text for equal problems."""
    digest = hashlib.sha256(problem.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _HELD_OUT == 0 else "train"


def source(task: str, seed: int, split: str, index: int) -> random.Random:
    """The random number generator of a row. A string seed is hashed by SHA-512, the same on every machine."""
    return random.Random(f"{task}/{seed}/{split}/{index}")


def below(rng: random.Random, n: int) -> int:
    """A random number in 0..n-1. Python guarantees the results of `random()` across versions, not of `randrange`."""
    return int(rng.random() * n)


def within(rng: random.Random, bounds: tuple[int, int]) -> int:
    """A random number between the bounds, both included."""
    return bounds[0] + below(rng, bounds[1] - bounds[0] + 1)


def drawn(rng: random.Random, pool: Sequence, count: int) -> list:
    """`count` different elements of `pool`, in the order of the draw."""
    left = list(pool)
    return [left.pop(below(rng, len(left))) for _ in range(count)]
