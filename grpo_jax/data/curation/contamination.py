"""Which rows of a data set may have leaked from held-out problems: they share runs of n words.

Contests put the same phrases into many problems ("can be written as m/n, where m and n are relatively prime"), so an
n-gram that stands in many texts says nothing by itself; rows that share such n-grams alone are listed apart.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_jax.data.curation.outcome import Fault, Outcome, Row, sieved
from grpo_jax.data.curation.words import ngrams, words

COLUMN = "overlap"
"""The column that a row gets: the telling n-grams that it shares with the held-out problem nearest to it."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out problem."""

    source: str
    """The data set that it is of."""
    row: int
    """Its number there, from 1."""
    text: str


@dataclass(frozen=True)
class Overlap:
    """What a row shares with held-out problems."""

    row: int
    against: str
    """The data set of the nearest held-out problem: the one that it shares most with."""
    against_row: int
    shared: int
    """Telling n-grams that both have; where the texts are the same, all n-grams, and at least 1."""
    of: int
    """N-grams that the held-out problem has."""
    same: bool
    """Word for word the same text."""
    example: str
    """One of the shared n-grams."""


def overlaps(
    questions: Sequence[str], held_out: Sequence[HeldOut], n: int = 8, boilerplate: int = 10
) -> tuple[list[Overlap], list[int], dict[str, int]]:
    """(rows that overlap; numbers of those that share boilerplate alone; boilerplate n-gram -> texts that have it).

    Args:
        boilerplate: an n-gram in so many different texts, the data's and the held-out ones together, tells nothing.
            A text that is word for word the same is found whatever it consists of.
    """
    own = [words(text) for text in questions]
    theirs = [words(item.text) for item in held_out]
    index: dict[str, list[int]] = defaultdict(list)
    whole: dict[str, int] = {}
    for at, text in enumerate(theirs):
        for gram in set(ngrams(text, n)):
            index[gram].append(at)
        if text:
            whole.setdefault(" ".join(text), at)
    common = _in_many(own, theirs, n, index, boilerplate)
    found, empty = [], []
    for number, text in enumerate(own, start=1):
        shared = [gram for gram in dict.fromkeys(ngrams(text, n)) if gram in index]
        telling = [gram for gram in shared if gram not in common]
        same = whole.get(" ".join(text))
        if same is not None or telling:
            found.append(_overlap(number, shared, telling, same, held_out, theirs, index, n))
        elif shared:
            empty.append(number)
    return found, empty, common


def _in_many(
    own: Sequence[list[str]], theirs: Sequence[list[str]], n: int, index: dict[str, list[int]], limit: int
) -> dict[str, int]:
    """The held-out n-grams that `limit` different texts have: copies of one text count once."""
    texts = {tuple(text) for text in (*own, *theirs)}
    counts = Counter(gram for text in texts for gram in set(ngrams(text, n)) if gram in index)
    return {gram: count for gram, count in counts.most_common() if count >= limit}


def _overlap(
    number: int,
    shared: list[str],
    telling: list[str],
    same: int | None,
    held_out: Sequence[HeldOut],
    theirs: Sequence[list[str]],
    index: dict[str, list[int]],
    n: int,
) -> Overlap:
    votes = Counter(at for gram in telling for at in index[gram])
    nearest = votes.most_common(1)[0][0] if same is None else same
    item, grams = held_out[nearest], len(set(ngrams(theirs[nearest], n)))
    count = votes[nearest] if same is None else max(grams, 1)
    inside = [gram for gram in telling if nearest in index[gram]] or shared or [" ".join(theirs[nearest])]
    return Overlap(number, item.source, item.row, count, grams, same is not None, inside[0])


def decontaminate(
    rows: Sequence[Row],
    questions: Sequence[str],
    held_out: Sequence[HeldOut],
    n: int = 8,
    boilerplate: int = 10,
    drop: bool = False,
) -> Outcome:
    """Every row with a column `overlap`; with `drop`, those that overlap are left out."""
    found, empty, common = overlaps(questions, held_out, n, boilerplate)
    by_row = {item.row: item for item in found}
    faults = [_fault(by_row.get(number)) if drop else None for number in range(1, len(rows) + 1)]
    marked = [
        {**row, COLUMN: by_row[number].shared if number in by_row else 0}
        for number, row in enumerate(rows, start=1)
    ]
    figures: dict[str, Any] = {
        "held_out": len(held_out),
        "overlapping": len(found),
        "same_text": sum(item.same for item in found),
        "boilerplate_only": len(empty),
        "flagged": [
            asdict(item) for item in sorted(found, key=lambda item: (-item.same, -item.shared, item.row))
        ],
        "boilerplate_rows": empty,
        "boilerplate": common,
    }
    return sieved(rows, faults, marked, figures)


def _fault(item: Overlap | None) -> Fault | None:
    if item is None:
        return None
    where = f"{item.against}, row {item.against_row}"
    if item.same:
        return "same_text", where
    return "overlap", f"{item.shared} of {item.of} n-grams of {where}: {item.example}"
