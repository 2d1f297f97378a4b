"""avg@N, pass@k and maj@N of each problem, and the standard error over problems. NumPy only.

Every figure of an evaluation is the mean over P problems of one number for each problem. Its standard error is
s / sqrt(P), with s the standard deviation (ddof 1) of the P numbers: the problems are treated as independent draws from
all problems of their kind (Miller 2024, arXiv:2411.00640, section 2.1). The N samples of each problem are not P * N
independent draws and are not counted as such; their variance is already part of the spread between problems. A single
problem says nothing about others: its error of 0 has no meaning.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def avg_at_n(successes: np.ndarray) -> np.ndarray:
    """avg@N [P] from successes [P,N]: the share of each problem's samples that succeed (pass@1, averaged)."""
    return successes.mean(1, dtype=np.float64)


def pass_at_k(successes: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k [P] from successes [P,N]: the chance that k samples, drawn from the N without replacement,
    include a success: 1 - C(N - c, k) / C(N, k) with c successes (Chen et al. 2021, arXiv:2107.03374), as the product
    1 - prod_{i<k} (N - c - i) / (N - i), which needs no large numbers.

    Raises:
        ValueError: k is not in 1..N. There is no unbiased estimate for more samples than N.
    """
    n = successes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of each problem, and there are {n}")
    failures = (n - successes.sum(1, dtype=np.int64))[:, None]
    i = np.arange(k)
    return 1.0 - np.prod(np.maximum(failures - i, 0) / (n - i), axis=1)


def majority_at_n(votes: Sequence[Sequence[Hashable | None]], successes: np.ndarray) -> np.ndarray:
    """maj@N [P]: the score of the answer that most of a problem's N samples give.

    Args:
        votes: N for each problem; equal votes are the same answer, and None (no answer found) is not counted.
        successes: [P,N] bool. An answer's score is the mean over the samples that gave it: 0 or 1, since equal answers
            are judged alike, unless a fault lost the verdict of one.

    If several answers tie for most votes, the score is the mean of theirs, the expected score of picking one of them at
    random. A problem without votes scores 0.
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
    """1, 2, 4, ... and n itself: the k for which pass@k is reported."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})
