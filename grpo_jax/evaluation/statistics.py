"""avg@N, pass@k and maj@N of each problem, and the standard error over problems. NumPy only.

Every figure of an evaluation is a mean over P problems of a number that belongs to one problem. Its standard error is
that of such a mean, s / sqrt(P) with s the standard deviation (ddof 1) of the P numbers: the problems are taken as
drawn from all problems of their kind, independently (Miller 2024, arXiv:2411.00640, section 2.1). The samples of a
problem are not P * N independent draws, and are never counted as such; what their number leaves uncertain is part of
the spread between problems already. A single problem says nothing about others: its error is 0 and means nothing.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def avg_at_n(successes: np.ndarray) -> np.ndarray:
    """avg@N [P] from successes [P,N]: the share of each problem's samples that succeed (pass@1, averaged)."""
    return successes.mean(1, dtype=np.float64)


def pass_at_k(successes: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k [P] from successes [P,N]: the chance that k samples, drawn from the N without putting back, hold
    a success: 1 - C(N - c, k) / C(N, k) with c successes (Chen et al. 2021, arXiv:2107.03374), as the product
    1 - prod_{i<k} (N - c - i) / (N - i), which needs no large numbers.

    Raises:
        ValueError: k is not in 1..N. Nothing unbiased can be said of more samples than there are.
    """
    n = successes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of each problem, and there are {n}")
    failures = (n - successes.sum(1, dtype=np.int64))[:, None]
    drawn = np.arange(k)
    return 1.0 - np.prod(np.maximum(failures - drawn, 0) / (n - drawn), axis=1)


def majority_at_n(votes: Sequence[Sequence[Hashable | None]], successes: np.ndarray) -> np.ndarray:
    """maj@N [P]: the score of the answer that most of a problem's N samples give.

    Args:
        votes: N a problem; equal votes are one answer, and None (no answer found) is not counted.
        successes: [P,N] bool. An answer's score is the mean of the samples that gave it: 0 or 1, as equal answers are
            judged alike, unless a fault cost one of them its verdict.

    Where several answers tie for most votes each of them is as good a winner as the others: the score is the mean of
    theirs, which is what drawing one of them scores on average. A problem without any vote scores 0.
    """
    return np.array([_majority(*each) for each in zip(votes, successes, strict=True)])


def _majority(votes: Sequence[Hashable | None], successes: np.ndarray) -> float:
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    winners = [vote for vote, count in counts.items() if count == most]
    scores = [np.mean([s for v, s in zip(votes, successes) if v == winner]) for winner in winners]
    return float(np.mean(scores)) if scores else 0.0


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over problems [P]; 0 for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... and n itself: the k for which pass@k is shown."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})
