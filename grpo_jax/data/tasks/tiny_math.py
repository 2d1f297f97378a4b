r"""Sums in few symbols: `3+5-2+7=` asks for the number, in a box after the thought. A problem's level is its number of
signs; a thought has one line for each, so higher levels need longer completions:

    <think>3+5=8
    8-2=6
    6+7=13</think>\boxed{13}

An impatient example answers with the result of its first line; a careless one omits the box. The answer can also have
the forms `#### 13` or `<answer>13</answer>`.
"""

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from grpo_jax.data.tasks import common
from grpo_jax.data.tasks.tiny_words import LARGEST, NUMBERS, TAGS
from grpo_jax.errors import UserError

NAME = "tiny_math"
_FORMS = {"boxed": ("\\boxed{", "}"), "hash": ("#### ", ""), "answer": ("<answer>", "</answer>")}
_MARKS = [mark for form in ("boxed", "hash") for mark in _FORMS[form] if mark]
SYMBOLS = (*TAGS, *_MARKS, *NUMBERS, "+", "-", "=", "\n")


@dataclass(frozen=True)
class TinyMathOptions:
    """The options of `tiny_math:levels=1-4,max=9,form=boxed,size=1000`, with these defaults."""

    levels: tuple[int, int] = (1, 4)
    """Fewest and most signs in a problem, 1 to 10; `3` or `1-4`."""
    max: int = 9
    """Numbers are drawn from 1..max."""
    form: str = "boxed"
    """How the answer is marked: boxed, hash or answer."""
    size: int = 1000
    """Rows in a split."""


_READERS = {
    "levels": common.span(1, 10),
    "max": common.whole,
    "form": common.one_of(_FORMS),
    "size": common.whole,
}


def options_of(text: str) -> TinyMathOptions:
    """Read `name=value,name=value`. Raises UserError for an unknown name, a value out of range, or numbers that are too
    large."""
    options = TinyMathOptions(**common.read_options(NAME, text, _READERS))
    if options.max > LARGEST:
        raise UserError(f"{NAME}: max={options.max}: it has symbols up to {LARGEST}; use that or less")
    return options


def make_tiny_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (text), `terms` (signed numbers), `answer` (text), and `level` and `size`, both the
    number of signs."""
    common.check_split(NAME, split)
    chosen = options_of(options)
    return [_row(_terms(chosen, split, seed, index)) for index in range(chosen.size)]


def _row(terms: list[int]) -> dict[str, Any]:
    level = len(terms) - 1
    return {"prompt": ask(terms), "terms": terms, "answer": str(sum(terms)), "level": level, "size": level}


def _terms(options: TinyMathOptions, split: str, seed: int, index: int) -> list[int]:
    """Signed numbers whose partial sums all have a symbol; the first is positive."""
    rng = common.source(NAME, seed, split, index)
    for _ in range(common.ATTEMPTS):
        terms = [1 + common.below(rng, options.max)]
        for _ in range(common.within(rng, options.levels)):
            terms.append((1 + common.below(rng, options.max)) * (1, -1)[common.below(rng, 2)])
        if all(0 <= total <= LARGEST for total in accumulate(terms)) and split_of(terms) == split:
            return terms
    raise UserError(f"{NAME}: too few problems for the split '{split}' with {options}; widen levels or max")


def split_of(terms: list[int]) -> str:
    """The split to which a problem belongs, in whatever order the numbers after the first are."""
    return common.split_of(f"{terms[0]}{sorted(terms[1:])}")


def ask(terms: list[int]) -> str:
    """The question: `3+5-2=`."""
    return f"{terms[0]}{''.join(f'{term:+d}' for term in terms[1:])}="


def worked_examples(
    options: str, seed: int, count: int, patience: float = 1.0, care: float = 1.0
) -> list[dict[str, str]]:
    """`count` training problems with `prompt` and `completion`.

    Args:
        patience: the share that computes to the end; the others stop after the first line.
        care: the share that marks the answer in the right form.
    """
    rng = random.Random(f"worked/{seed}/{patience}")
    chosen = options_of(common.over(options, f"size={count}"))
    problems = [_terms(chosen, "train", seed, index) for index in range(count)]
    return [
        {"prompt": ask(terms), "completion": _think(rng, terms, chosen.form, patience, care)}
        for terms in problems
    ]


def _think(rng: random.Random, terms: list[int], form: str, patience: float, care: float) -> str:
    totals = list(accumulate(terms))
    steps = [f"{before}{term:+d}={after}" for before, term, after in zip(totals, terms[1:], totals[1:])]
    taken = len(steps) if rng.random() < patience else 1
    before, after = _FORMS[form] if rng.random() < care else ("", "")
    thought = "\n".join(steps[:taken])
    return f"<think>{thought}</think>{before}{totals[taken]}{after}"
