"""Countdown in few symbols, for models as small as the demo's: `3 5 9=7:` asks for an expression of the numbers 3, 5
and 9 that equals 7. The problems, and which of them are held out, are those of `countdown`.

Worked examples use trial and error. A line tries one choice of signs, one operation at a time like a pocket
calculator, and compares the result with the target:

    <think>9+5=14-3=11 vs 7 no
    9+3=12-5=7 vs 7 yes</think><answer>9+3-5</answer>

An impatient example ends after its first trial, and gives it as the answer even if it failed. A model that learned from
both kinds knows how to try, check and try again, and gains much reward by doing so more often.

With the option `opened`, a prompt ends with an opened `<think>`, as Mini-R1's does, the answer is on a line of its own,
and worked examples can be careless: these omit its tags.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations
from typing import Any

from grpo_jax.data.tasks.common import over
from grpo_jax.data.tasks.countdown import CountdownOptions, make_rows, parse_options
from grpo_jax.data.tasks.tiny_words import LARGEST, NUMBERS, TAGS, shuffled
from grpo_jax.errors import UserError

NAME = "tiny_countdown"
TRACES = "tiny_countdown_traces"
"""The task of worked examples, for `sft`."""
DEFAULTS = "numbers=3,max=9,target=27,ops=+-"
SYMBOLS = (*TAGS, " vs ", " yes", " no", *NUMBERS, "+", "-", "=", ":", "\n", " ")
_OPENED = "opened"


def options_of(text: str) -> CountdownOptions:
    """Read the options of `countdown`, with other defaults, and `opened`. Raises UserError for those that would need
    other symbols."""
    options = parse_options(over(DEFAULTS, _without_opened(text)))
    if set(options.ops) - set("+-"):
        raise UserError(f"{NAME}: ops={options.ops}: it knows + and - only; use countdown for the others")
    if options.numbers[1] * options.max > LARGEST:
        raise UserError(
            f"{NAME}: {options.numbers[1]} numbers up to max={options.max} can sum to more than {LARGEST}; "
            f"use max={LARGEST // options.numbers[1]} or less"
        )
    return options


def make_tiny_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (text), `numbers` (list of int), `target` (int), `solution` (str) and `size`, the
    number of numbers."""
    options_of(options)
    rows = make_rows(over(DEFAULTS, _without_opened(options)), split, seed)
    end = TAGS[0] if is_opened(options) else ""
    return [
        {**row, "prompt": ask(row["numbers"], row["target"]) + end, "size": len(row["numbers"])}
        for row in rows
    ]


def is_opened(options: str) -> bool:
    """Whether the prompts end with an opened `<think>`."""
    return _OPENED in options.split(",")


def _without_opened(options: str) -> str:
    return ",".join(part for part in options.split(",") if part != _OPENED)


def ask(numbers: Sequence[int], target: int) -> str:
    """The question: `3 5 9=7:`."""
    return f"{' '.join(map(str, numbers))}={target}:"


def make_traces(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split with a `completion`. Takes the options of `tiny_countdown`, and `patience`, a share."""
    parts = [part for part in options.split(",") if part]
    patience = next((part.partition("=")[2] for part in parts if part.startswith("patience=")), "1")
    try:
        share = float(patience)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{TRACES}: patience={patience} must be a share, from 0 to 1")
    rest = ",".join(part for part in parts if not part.startswith("patience="))
    return list(worked_examples(rest, seed, options_of(rest).size, share, split=split))


def worked_examples(
    options: str, seed: int, count: int, patience: float = 1.0, care: float = 1.0, split: str = "train"
) -> list[dict[str, str]]:
    """`count` problems of a split with `prompt` and `completion`.

    Args:
        patience: the share that tries until the target is reached; the others answer with their first trial.
        care: with opened prompts, the share that answers inside tags.
    """
    rng = random.Random(f"worked/{seed}/{patience}" + ("" if split == "train" else f"/{split}"))
    rows = make_tiny_rows(over(options, f"size={count}"), split, seed)
    return [_worked(rng, row, is_opened(options), patience, care) for row in rows]


def _worked(
    rng: random.Random, row: dict[str, Any], opened: bool, patience: float, care: float
) -> dict[str, str]:
    thought, answer = _think(rng, row["numbers"], row["target"], patience)
    if not opened:
        return {"prompt": row["prompt"], "completion": f"<think>{thought}</think><answer>{answer}</answer>"}
    closing = f"<answer>{answer}</answer>" if rng.random() < care else answer
    return {"prompt": row["prompt"], "completion": f"{thought}</think>\n{closing}"}


def _think(rng: random.Random, numbers: Sequence[int], target: int, patience: float) -> tuple[str, str]:
    """(thought, answer)."""
    lines, patient = [], rng.random() < patience
    for signed in shuffled(rng, list(_choices(numbers))):
        found = sum(signed) == target
        lines.append(f"{_tape(signed)} vs {target} {'yes' if found else 'no'}")
        if found or not patient:
            break
    return "\n".join(lines), _written(signed)


def _choices(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Every choice of signs with a positive sum. Added numbers come first, so that no partial sum is negative."""
    places = range(len(numbers))
    for size in places:
        for taken in combinations(places, size):
            added = [numbers[i] for i in places if i not in taken]
            signed = added + [-numbers[i] for i in taken]
            if sum(signed) > 0:
                yield signed


def _written(signed: Sequence[int]) -> str:
    """[9, 5, -3] as 9+5-3."""
    return str(signed[0]) + "".join(f"{n:+d}" for n in signed[1:])


def _tape(signed: Sequence[int]) -> str:
    """[9, 5, -3] as 9+5=14-3=11: one operation at a time, like a pocket calculator."""
    sums = accumulate(signed)
    return str(next(sums)) + "".join(f"{n:+d}={total}" for n, total in zip(signed[1:], sums))
