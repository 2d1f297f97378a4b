"""Knights and knaves in few symbols, with two to four people, in Logic-RL's form: a prompt ends with an opened
`<think>`, and the answer has a line for each person.

    Who is who?
    Ava says: Ben is a knave and Ava is a knight
    Ben says: Ava is a knave or Ben is a knave
    <think>

Unlike in `knights`, people also speak of themselves: otherwise two people would have no puzzle with one solution.
Worked examples go through the cases in order, and leave a case at the first person who cannot have made their
statement:

    Case 1: Ava is a knight Ben is a knight
    Ava says: false no
    Case 2: Ava is a knave Ben is a knight
    Ava says: false
    Ben says: true yes</think>
    <answer>(1) Ava is a knave
    (2) Ben is a knight</answer>

An impatient example answers with its first case even if it fails; a careless one omits the answer's tags.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.data.tasks import common
from grpo_jax.data.tasks.knights import Statement, holds, in_words, solve, split_of
from grpo_jax.data.tasks.tiny_words import TAGS
from grpo_jax.errors import UserError

NAME = "tiny_knights"
NAMES = ("Ava", "Ben", "Cleo", "Dan")
_KINDS = ("knight", "knave")
_PAIRS = ("and", "or")
_CASES = tuple(f"\nCase {number}:" for number in range(1, 2 ** len(NAMES) + 1))
SYMBOLS = (
    *TAGS,
    "Who is who?",
    *(f"\n{name} says:" for name in NAMES),
    *(f" {name} is a {kind}" for name in NAMES for kind in _KINDS),
    *(f" {pair}" for pair in _PAIRS),
    *_CASES,
    *(" true", " false", " yes", " no"),
    *(f"({number})" for number in range(1, len(NAMES) + 1)),
    "\n",
)


@dataclass(frozen=True)
class TinyKnightsOptions:
    """The options of `tiny_knights:people=2-3,size=1000`, with these defaults."""

    people: tuple[int, int] = (2, 3)
    """Fewest and most people, 2 to 4; `3` or `2-3`."""
    size: int = 1000
    """Rows in a split."""


_READERS = {"people": common.span(2, len(NAMES)), "size": common.whole}


def options_of(text: str) -> TinyKnightsOptions:
    """Read `name=value,name=value`. Raises UserError for an unknown name or a value out of range."""
    return TinyKnightsOptions(**common.read_options(NAME, text, _READERS))


def make_tiny_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (text), `answer` (numbered lines), `solution` (for each person whether a knight)
    and `size`, the number of people."""
    return [_row(*puzzle) for puzzle in _puzzles(options, split, seed)]


def _puzzles(options: str, split: str, seed: int) -> Iterator[tuple[list[Statement], tuple[bool, ...]]]:
    common.check_split(NAME, split)
    chosen = options_of(options)
    return (_puzzle(chosen, split, seed, index) for index in range(chosen.size))


def _puzzle(
    options: TinyKnightsOptions, split: str, seed: int, index: int
) -> tuple[list[Statement], tuple[bool, ...]]:
    """Statements with exactly one solution, and that solution."""
    rng = common.source(NAME, seed, split, index)
    for _ in range(common.ATTEMPTS):
        count = common.within(rng, options.people)
        statements = [_statement(rng, count, speaker) for speaker in range(count)]
        solutions = solve(statements)
        if len(solutions) == 1 and split_of(statements) == split:
            return statements, solutions[0]
    raise UserError(f"{NAME}: too few puzzles for the split '{split}' with {options}; take more people")


def _statement(rng: random.Random, count: int, speaker: int) -> Statement:
    """A statement about one other person or, more often, about two people."""
    single = lambda person: (_KINDS[common.below(rng, 2)], person)
    if rng.random() < 0.25:
        return single(common.drawn(rng, [i for i in range(count) if i != speaker], 1)[0])
    left, right = common.drawn(rng, range(count), 2)
    return _PAIRS[common.below(rng, 2)], single(left), single(right)


def _row(statements: Sequence[Statement], solution: Sequence[bool]) -> dict[str, Any]:
    return {
        "prompt": ask(statements),
        "answer": _lines(solution),
        "solution": list(solution),
        "size": len(solution),
    }


def ask(statements: Sequence[Statement]) -> str:
    """The question, followed by an opened thought."""
    lines = "".join(f"\n{name} says: {in_words(s, NAMES)}" for name, s in zip(NAMES, statements))
    return f"Who is who?{lines}\n<think>"


def _facts(who: Sequence[bool]) -> list[str]:
    return [f" {name} is a {_KINDS[not knight]}" for name, knight in zip(NAMES, who)]


def _lines(who: Sequence[bool]) -> str:
    """One line per person: `(1) Ava is a knight`."""
    return "\n".join(f"({number}){fact}" for number, fact in enumerate(_facts(who), start=1))


def worked_examples(
    options: str, seed: int, count: int, patience: float = 1.0, care: float = 1.0
) -> list[dict[str, str]]:
    """`count` training problems with `prompt` and `completion`.

    Args:
        patience: the share that tries cases until one holds; the others answer with the first.
        care: the share that answers inside tags.
    """
    rng = random.Random(f"worked/{seed}/{patience}")
    puzzles = _puzzles(common.over(options, f"size={count}"), "train", seed)
    return [
        {"prompt": ask(statements), "completion": _think(rng, statements, patience, care)}
        for statements, _ in puzzles
    ]


def _think(rng: random.Random, statements: Sequence[Statement], patience: float, care: float) -> str:
    lines, patient = [], rng.random() < patience
    for case, who in zip(_CASES, _assignments(len(statements))):
        checked = _checked(statements, who)
        lines.append(case + "".join(_facts(who)) + checked)
        if checked.endswith("yes") or not patient:
            break
    answer = f"<answer>{_lines(who)}</answer>" if rng.random() < care else _lines(who)
    return f"{''.join(lines)}</think>\n{answer}"


def _assignments(count: int) -> Iterator[tuple[bool, ...]]:
    """All assignments. The first person's kind changes fastest, so that case 3 means the same for Ava in any puzzle."""
    return (who[::-1] for who in itertools.product((True, False), repeat=count))


def _checked(statements: Sequence[Statement], who: Sequence[bool]) -> str:
    """Lines that say whether each statement is true, up to the first that the speaker cannot have made."""
    text = ""
    for name, statement, knight in zip(NAMES, statements, who):
        truth = holds(statement, who)
        text += f"\n{name} says: {str(truth).lower()}"
        if truth != knight:
            return f"{text} no"
    return f"{text} yes"
