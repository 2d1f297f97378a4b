"""Which rows of a data set may have leaked from held-out problems: they share runs of n words.

Contests put the same phrases into many problems ("can be written as m/n, where m and n are relatively prime"), so an
n-gram that stands in many texts says nothing by itself; rows that share such n-grams alone are listed apart.

A held-out problem of fewer than n words has one run, the whole of it, unless it has fewer than `SHORTEST`: so few words
stand side by side by chance.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_jax.data.curation.outcome import Fault, Outcome, Row, sieved
from grpo_jax.data.curation.words import ngrams, words

COLUMN = "overlap"
"""The column that a row gets: its largest share of a held-out problem's n-grams, 1.0 where the texts are the same."""

SHORTEST = 5
"""Words that a held-out problem must have to be looked for inside of other texts. Of the 731 different sentences of 5
to 7 words in GSM8K's test split 28 stand in its training split, all but 2 of them everyday questions without a number,
such as "how much will she spend": hardly a whole problem is one of these."""


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
    """What a row shares with the held-out problem of which it has the largest share."""

    row: int
    against: str
    against_row: int
    shared: int
    """Telling n-grams that both have."""
    of: int
    """N-grams that the held-out problem has: 1 for one of fewer than n words, 0 for one of fewer than `SHORTEST`."""
    same: bool
    """Word for word the same text."""
    example: str
    """One of the shared n-grams."""

    @property
    def share(self) -> float:
        """Of the held-out problem's n-grams."""
        return 1.0 if self.same else self.shared / self.of


class Index:
    """Held-out problems by their n-grams.

    Args:
        texts: of the data, to count in how many texts an n-gram stands: copies of one text count once.
        boilerplate: an n-gram in so many texts, the data's and the held-out ones together, tells nothing. A text that
            is word for word the same is found whatever it consists of.
    """

    def __init__(self, held_out: Sequence[HeldOut], texts: Sequence[list[str]], n: int, boilerplate: int):
        self.held_out, self.n = held_out, n
        theirs = [words(item.text) for item in held_out]
        own = [set(_runs(text, n)) for text in theirs]
        self.sizes = list(map(len, own))
        self.whole = {" ".join(text): at for at, text in reversed(list(enumerate(theirs))) if text}
        self.places: dict[str, list[int]] = defaultdict(list)
        for at, grams in enumerate(own):
            for gram in grams:
                self.places[gram].append(at)
        self.lengths = sorted({min(len(text), n) for text, grams in zip(theirs, own) if grams}, reverse=True)
        different = {tuple(text) for text in (*texts, *theirs)}
        counts = Counter(gram for text in different for gram in self.shared(text))
        often = sorted(counts, key=lambda gram: (-counts[gram], gram))
        self.common = {gram: counts[gram] for gram in often if counts[gram] >= boilerplate}

    def shared(self, text: Sequence[str]) -> list[str]:
        """The n-grams of a text that held-out problems have, boilerplate included."""
        grams = (gram for length in self.lengths for gram in ngrams(text, length))
        return [gram for gram in dict.fromkeys(grams) if gram in self.places]

    def nearest(self, row: int, text: list[str]) -> Overlap | None:
        """The held-out problem of which the text has the largest share; None when it has nothing telling."""
        telling = [gram for gram in self.shared(text) if gram not in self.common]
        same = self.whole.get(" ".join(text))
        if same is None and not telling:
            return None
        votes = Counter(at for gram in telling for at in self.places[gram])
        at = max(votes, key=lambda at: (votes[at] / self.sizes[at], votes[at], -at)) if same is None else same
        example = next((gram for gram in telling if at in self.places[gram]), " ".join(text[: self.n]))
        item = self.held_out[at]
        return Overlap(row, item.source, item.row, votes[at], self.sizes[at], same is not None, example)


def _runs(text: Sequence[str], n: int) -> list[str]:
    """A held-out problem's n-grams; the whole of one that is shorter, if it is long enough to tell anything."""
    return ngrams(text, n if len(text) >= n else max(len(text), SHORTEST))


def decontaminate(
    rows: Sequence[Row],
    questions: Sequence[str],
    held_out: Sequence[HeldOut],
    n: int = 8,
    boilerplate: int = 10,
    share: float = 0.2,
    drop: bool = False,
) -> Outcome:
    """Every row with a column `overlap`; with `drop`, those that have `share` of a held-out problem are left out.

    Open-R1 drops a row for one n-gram, which is `share` = 0 without boilerplate; between GSM8K's own splits that finds
    phrases such as "how much money does she have left after".
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


def _short(held_out: Sequence[HeldOut], n: int) -> dict[str, int]:
    """How many have fewer than n words, by how they are found."""
    sizes = [size for item in held_out if (size := len(words(item.text))) < n]
    counts = Counter("as a whole" if size >= SHORTEST else "only as the same text" for size in sizes)
    return dict(sorted(counts.items()))


def _fault(item: Overlap) -> Fault:
    where = f"{item.against}, row {item.against_row}"
    if item.same:
        return "same_text", where
    return "overlap", f"{item.shared} of {item.of} n-grams of {where}: {item.example}"
