"""Knights and knaves: who always tells the truth and who always lies, by what they say of one another (Smullyan 1978).

A puzzle has exactly one solution: all 2^n assignments are tried, and statements that leave none or several are drawn
again. A statement is about one person, or two such are joined by a connective (as in Xie et al. 2024,
arXiv:2410.23123).
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.data.tasks import common
from grpo_jax.data.tasks.common import (
    ATTEMPTS,
    below,
    check_split,
    drawn,
    read_options,
    source,
    span,
    whole,
)
from grpo_jax.errors import UserError

NAME = "knights_and_knaves"
NAMES = (
    *("Ava", "Benjamin", "Chloe", "Daniel", "Ella", "Felix", "Grace", "Henry", "Isabella", "Jack", "Lily"),
    *("Mason", "Nora", "Oliver", "Penelope", "Quentin", "Ruby", "Samuel", "Tessa", "William"),
)
_PAIRS = ("and", "or", "->", "<=>")

Statement = tuple  # ("knight", person), ("knave", person), or (one of _PAIRS, Statement, Statement)


@dataclass(frozen=True)
class KnightsOptions:
    """The options of `knights_and_knaves:people=3-5,size=900`; the defaults are people=3, size=1000."""

    people: tuple[int, int] = (3, 3)
    """Fewest and most people, 2 to 8; `5` or `3-7`. Rows take these numbers in turn, so each has an equal share."""
    size: int = 1000
    """Rows in a split."""


_READERS = {"people": span(2, 8), "size": whole}


def parse_options(text: str) -> KnightsOptions:
    """Read `name=value,name=value`. Raises UserError for an unknown name or a value out of range."""
    return KnightsOptions(**read_options(NAME, text, _READERS))


def make_rows(options: str, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a split: `prompt` (messages), `names`, `statements`, `solution` (a bool each: a knight), `answer`
    (numbered lines) and `people`."""
    check_split(NAME, split)
    chosen = parse_options(options)
    return [make_row(chosen, split, seed, index) for index in range(chosen.size)]


def make_row(options: KnightsOptions, split: str, seed: int, index: int) -> dict[str, Any]:
    """Row `index` of a split. Raises UserError if the options leave (almost) no puzzle for the split."""
    rng = source(NAME, seed, split, index)
    sizes = _sizes(options)
    count = sizes[index % len(sizes)]
    for _ in range(ATTEMPTS):
        statements = [_statement(rng, count, speaker) for speaker in range(count)]
        solutions = solve(statements)
        if len(solutions) == 1 and split_of(statements) == split:
            return _row(drawn(rng, NAMES, count), statements, solutions[0])
    raise UserError(f"{NAME}: too few puzzles for the split '{split}' with {options}; take more people")


def _sizes(options: KnightsOptions) -> range:
    """The numbers of people, without 2 if more are allowed: two people speak only of one another, and none of their
    puzzles has exactly one solution."""
    fewest, most = options.people
    return range(max(fewest, min(3, most)), most + 1)


def solve(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """Every assignment (True: a knight) under which each statement is true exactly when its speaker is a knight."""
    everyone = itertools.product((True, False), repeat=len(statements))
    return [
        who
        for who in everyone
        if all(holds(statement, who) == who[i] for i, statement in enumerate(statements))
    ]


def holds(statement: Statement, who: Sequence[bool]) -> bool:
    """Whether a statement is true where person i is a knight if who[i]."""
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return who[parts[0]] == (kind == "knight")
    left, right = (holds(part, who) for part in parts)
    return {"and": left and right, "or": left or right, "->": not left or right, "<=>": left == right}[kind]


def split_of(statements: Sequence[Statement]) -> str:
    """The split to which a puzzle belongs, whatever its people are called and in whatever order they speak.

    Each person's label is repeatedly replaced by a hash of what they say, with labels in place of people (Weisfeiler
    and Leman 1968): puzzles that differ only in the order of people end with the same labels.
    """
    labels = [""] * len(statements)
    for _ in statements:
        labels = [
            _hash(f"{label}: {_shape(statement, labels)}") for label, statement in zip(labels, statements)
        ]
    return common.split_of("".join(sorted(labels)))


def _shape(statement: Statement, labels: Sequence[str]) -> str:
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return f"{kind} {labels[parts[0]]}"
    shapes = [_shape(part, labels) for part in parts]
    return f"{kind} ({', '.join(shapes if kind == '->' else sorted(shapes))})"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def in_words(statement: Statement, names: Sequence[str]) -> str:
    """A statement in English."""
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return f"{names[parts[0]]} is a {kind}"
    left, right = (in_words(part, names) for part in parts)
    joined = {"and": "{} and {}", "or": "{} or {}", "->": "if {} then {}", "<=>": "{} if and only if {}"}[
        kind
    ]
    return joined.format(left, right)


def _row(names: list[str], statements: list[Statement], solution: tuple[bool, ...]) -> dict[str, Any]:
    kinds = ["knight" if knight else "knave" for knight in solution]
    lines = [f"({i}) {name} is a {kind}" for i, (name, kind) in enumerate(zip(names, kinds), start=1)]
    return {
        "prompt": [{"role": "user", "content": _question(names, statements)}],
        "names": names,
        "people": len(names),
        "statements": repr(statements),
        "solution": list(solution),
        "answer": "\n".join(lines),
    }


def _question(names: Sequence[str], statements: Sequence[Statement]) -> str:
    quotes = " ".join(f'{name} says: "{in_words(s, names)}."' for name, s in zip(names, statements))
    return (
        "On an island everyone is either a knight, who always tells the truth, or a knave, who always lies. You meet "
        f"{len(names)} of its people: {', '.join(names[:-1])} and {names[-1]}. {quotes} Who is a knight, and who is a "
        "knave? Work it out inside <think> </think>, then say it of each person, a line each, inside <answer> "
        f"</answer>, like <answer>\n(1) {names[0]} is a knight\n(2) ...\n</answer>."
    )


def _statement(rng: random.Random, count: int, speaker: int) -> Statement:
    """A statement about other people than the speaker: with equal chance about one person, or about two, joined."""
    others = [i for i in range(count) if i != speaker]
    single = lambda person: ("knight" if rng.random() < 0.5 else "knave", person)
    if len(others) == 1 or rng.random() < 0.5:
        return single(others[below(rng, len(others))])
    left, right = drawn(rng, others, 2)
    return _PAIRS[below(rng, len(_PAIRS))], single(left), single(right)
