"""Rows that ask what an earlier row asks, nearly word for word.

Likeness is the Jaccard index of the sets of runs of n words: shared runs over all runs. (DeepScaleR compares
embeddings instead, at 0.90; ours needs no model, and does not find the same problem in other words.) It is computed
exactly, and only for pairs that can reach the threshold: two such sets have one of their rarest runs in common (prefix
filtering, Bayardo et al. 2007).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from grpo_jax.data.curation.outcome import Fault, Outcome, Row, sieved
from grpo_jax.data.curation.words import ngrams, words


def shingles(text: str, n: int) -> frozenset[str]:
    """The runs of n words of a text; of a shorter one, the whole."""
    sequence = words(text)
    return frozenset(ngrams(sequence, n) or ([" ".join(sequence)] if sequence else []))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared over all; 0 for two empty sets."""
    return len(one & other) / len(one | other) if one or other else 0.0


def nearest_earlier(
    sets: Sequence[frozenset[str]], answers: Sequence[str | None], threshold: float
) -> list[tuple[int, float] | None]:
    """For each set the first earlier one that is kept and at least so like it, and how like; None: it is kept itself.

    Where both have an answer and the answers differ, they are not the same problem.
    """
    rarity = Counter(gram for grams in sets for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    found: list[tuple[int, float] | None] = []
    for at, grams in enumerate(sets):
        ordered = sorted(grams, key=lambda gram: (rarity[gram], gram))
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - 1e-9) + 1]
        candidates = sorted({other for gram in prefix for other in index[gram]})
        alike = ((other, jaccard(grams, sets[other])) for other in candidates)
        match = next(
            (pair for pair in alike if pair[1] >= threshold and _agree(answers[at], answers[pair[0]])), None
        )
        found.append(match)
        for gram in prefix if match is None else ():
            index[gram].append(at)
    return found


def _agree(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def dedup(
    rows: Sequence[Row],
    questions: Sequence[str],
    answers: Sequence[str | None],
    threshold: float = 0.9,
    n: int = 5,
) -> Outcome:
    """The first of each set of rows that are alike. A row that says nothing is alike to none."""
    sets = [shingles(text, n) for text in questions]
    found = nearest_earlier(sets, answers, threshold)
    return sieved(rows, [None if pair is None else _fault(*pair) for pair in found])


def _fault(other: int, likeness: float) -> Fault:
    kind = "same" if likeness == 1.0 else "near"
    return f"{kind}_text", f"row {other + 1}, likeness {likeness:.3f}"
