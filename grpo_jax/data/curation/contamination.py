"""Decontamination: finds rows that may have leaked from held-out problems, by the n-grams of words that they share.

Contests use the same phrases in many problems ("can be written as m/n, where m and n are relatively prime"), so an
n-gram that occurs in many texts is no evidence; rows that share only such n-grams are listed separately.

A held-out problem of fewer than n words has one n-gram, its whole text, unless it has fewer than `SHORTEST` words: so
few occur together by chance.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_jax.data.curation.outcome import CurationOutcome, Fault, Row, sieved
from grpo_jax.data.curation.words import ngrams, words

COLUMN = "overlap"
"""The column that rows get: the largest share of a held-out problem's n-grams in the row; 1.0 for equal texts."""

SHORTEST = 5
"""Words that a held-out problem must have to be searched for inside other texts. Of the 731 different sentences of 5
to 7 words in GSM8K's test split, 28 occur in its training split; all but 2 of them are everyday questions without a
number, such as "how much will she spend", and hardly ever a whole problem."""


@dataclass(frozen=True)
class HeldOutProblem:
    """A held-out problem."""

    source: str
    """Its data set."""
    row: int
    """Its number there, from 1."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a row shares with the held-out problem of which it contains the largest share."""

    row: int
    against: str
    against_row: int
    shared: int
    """The number of shared n-grams, without boilerplate."""
    of: int
    """The number of n-grams of the held-out problem: 1 if it has fewer than n words, 0 if fewer than `SHORTEST`."""
    same: bool
    """Whether the texts are the same, word for word."""
    example: str
    """One of the shared n-grams."""

    @property
    def share(self) -> float:
        """The share of the held-out problem's n-grams."""
        return 1.0 if self.same else self.shared / self.of


class Index:
    """An index of held-out problems by their n-grams.

    Args:
        texts: the texts of the data, to count in how many texts an n-gram occurs; copies of a text count once.
        boilerplate: an n-gram in at least so many texts, of the data and held out together, is no evidence. A text that
            is the same word for word is always found.
    """

    def __init__(
        self, held_out: Sequence[HeldOutProblem], texts: Sequence[list[str]], n: int, boilerplate: int
    ):
        self.held_out, self.n = held_out, n
        theirs = [words(item.text) for item in held_out]
        own = [set(_runs(text, n)) for text in theirs]
        self.sizes = list(map(len, own))
        self.whole = {" ".join(text): index for index, text in reversed(list(enumerate(theirs))) if text}
        self.places: dict[str, list[int]] = defaultdict(list)  # n-gram -> indices of held-out problems
        for index, grams in enumerate(own):
            for gram in grams:
                self.places[gram].append(index)
        self.lengths = sorted({min(len(text), n) for text, grams in zip(theirs, own) if grams}, reverse=True)
        different = {tuple(text) for text in (*texts, *theirs)}
        counts = Counter(gram for text in different for gram in self.shared(text))
        often = sorted(counts, key=lambda gram: (-counts[gram], gram))
        self.common = {gram: counts[gram] for gram in often if counts[gram] >= boilerplate}

    def shared(self, text: Sequence[str]) -> list[str]:
        """The n-grams of a text that also occur in held-out problems, including boilerplate."""
        grams = (gram for length in self.lengths for gram in ngrams(text, length))
        return [gram for gram in dict.fromkeys(grams) if gram in self.places]

    def nearest(self, row: int, text: list[str]) -> Overlap | None:
        """The overlap with the held-out problem of which the text contains the largest share; None if it shares nothing
        but boilerplate."""
        evidence = [gram for gram in self.shared(text) if gram not in self.common]
        same = self.whole.get(" ".join(text))
        if same is None and not evidence:
            return None
        votes = Counter(index for gram in evidence for index in self.places[gram])
        share = lambda index: (votes[index] / self.sizes[index], votes[index], -index)
        best = max(votes, key=share) if same is None else same
        problem = self.held_out[best]
        return Overlap(
            row=row,
            against=problem.source,
            against_row=problem.row,
            shared=votes[best],
            of=self.sizes[best],
            same=same is not None,
            example=next((gram for gram in evidence if best in self.places[gram]), " ".join(text[: self.n])),
        )


def _runs(text: Sequence[str], n: int) -> list[str]:
    """A held-out problem's n-grams; its whole text if it is shorter, but has at least `SHORTEST` words."""
    return ngrams(text, n if len(text) >= n else max(len(text), SHORTEST))


def decontaminate(
    rows: Sequence[Row],
    questions: Sequence[str],
    held_out: Sequence[HeldOutProblem],
    n: int = 8,
    boilerplate: int = 10,
    share: float = 0.2,
    drop: bool = False,
) -> CurationOutcome:
    """Every row with a column `overlap`. With `drop`, rows with at least `share` of a held-out problem are dropped.

    Open-R1 drops a row for a single n-gram, which is `share` = 0 and no boilerplate; between GSM8K's own splits that
    finds phrases such as "how much money does she have left after".
    """
    texts = [words(text) for text in questions]
    unreadable = [item for item in held_out if not words(item.text)]
    readable = [item for item in held_out if words(item.text)]
    index = Index(readable, texts, n, boilerplate)
    nearest = [index.nearest(row, text) for row, text in enumerate(texts, start=1)]
    found = [item for item in nearest if item is not None]
    leaks = [item for item in found if item.share >= share]
    faults = [_fault(item) if drop and item and item.share >= share else None for item in nearest]
    marked = [{**row, COLUMN: item.share if item else 0.0} for row, item in zip(rows, nearest)]
    flagged = sorted(found, key=lambda item: (-item.share, -item.shared, item.row))
    empty = [row for row, text in enumerate(texts, 1) if nearest[row - 1] is None and index.shared(text)]
    figures: dict[str, Any] = {
        "unreadable": [row for row, text in enumerate(texts, 1) if not text],
        "held_out": len(readable),
        "held_out_unreadable": [{"against": item.source, "against_row": item.row} for item in unreadable],
        "held_out_short": _short(readable, n),
        "overlapping": len(found),
        "leaks": len(leaks),
        "same_text": sum(item.same for item in found),
        "boilerplate_only": len(empty),
        "flagged": [{**asdict(item), "share": round(item.share, 4)} for item in flagged],
        "boilerplate_rows": empty,
        "boilerplate": index.common,
    }
    return sieved(rows, faults, marked, figures)


def _short(held_out: Sequence[HeldOutProblem], n: int) -> dict[str, int]:
    """The number of problems with fewer than n words, by how they can be found."""
    sizes = [size for item in held_out if (size := len(words(item.text))) < n]
    counts = Counter("as a whole" if size >= SHORTEST else "only as the same text" for size in sizes)
    return dict(sorted(counts.items()))


def _fault(item: Overlap) -> Fault:
    problem = f"{item.against}, row {item.against_row}"
    if item.same:
        return "same_text", problem
    return "overlap", f"{item.shared} of {item.of} n-grams of {problem}: {item.example}"
