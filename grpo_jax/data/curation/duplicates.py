"""Deduplication: finds rows whose question repeats an earlier one, nearly word for word.

The similarity is the Jaccard index of the sets of n-grams of words: shared ones over all. (DeepScaleR compares
embeddings instead, at 0.90; this needs no model, but does not find the same problem in other words.) It is computed
exactly, and only for pairs that can reach the threshold: two such sets share one of their rarest n-grams (prefix
filtering, Bayardo et al. 2007).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from grpo_jax.data.curation.outcome import CurationOutcome, Fault, Row, sieved
from grpo_jax.data.curation.words import ngrams, words


def shingles(text: str, n: int) -> frozenset[str]:
    """The n-grams of words of a text; the whole text if it has fewer than n words."""
    sequence = words(text)
    return frozenset(ngrams(sequence, n) or ([" ".join(sequence)] if sequence else []))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The Jaccard index of two sets; 0 for two empty ones."""
    return len(one & other) / len(one | other) if one or other else 0.0


def nearest_earlier(
    sets: Sequence[frozenset[str]], answers: Sequence[str | None], threshold: float
) -> list[tuple[int, float] | None]:
    """For each set (index, similarity) of the first earlier kept one that is similar enough; None if it is kept itself.

    Two problems whose answers are given and differ are not the same.
    """
    rarity = Counter(gram for grams in sets for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    found: list[tuple[int, float] | None] = []
    for number, grams in enumerate(sets):
        ordered = sorted(grams, key=lambda gram: (rarity[gram], gram))
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - 1e-9) + 1]
        candidates = sorted({other for gram in prefix for other in index[gram]})
        alike = ((other, jaccard(grams, sets[other])) for other in candidates)
        match = next(
            (pair for pair in alike if pair[1] >= threshold and _agree(answers[number], answers[pair[0]])),
            None,
        )
        found.append(match)
        for gram in prefix if match is None else ():
            index[gram].append(number)
    return found


def _agree(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def dedup(
    rows: Sequence[Row],
    questions: Sequence[str],
    answers: Sequence[str | None],
    threshold: float = 0.9,
    n: int = 5,
) -> CurationOutcome:
    """The first of each set of similar rows. A row without words is similar to none."""
    sets = [shingles(text, n) for text in questions]
    found = nearest_earlier(sets, answers, threshold)
    return sieved(rows, [None if pair is None else _fault(*pair) for pair in found])


def _fault(other: int, likeness: float) -> Fault:
    kind = "same" if likeness == 1.0 else "near"
    return f"{kind}_text", f"row {other + 1}, likeness {likeness:.3f}"
