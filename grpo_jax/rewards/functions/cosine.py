"""Accuracy scaled by length. Same name, arguments and values as TRL 1.16's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.rewards.functions.accuracy import accuracy_reward
from grpo_jax.rewards.functions.verdicts import worst


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    faithful: bool = False,
) -> "CosineScaledReward":
    """A reward that favours short right answers, and long wrong ones over short wrong ones.

    Args:
        max_len: the number of tokens L at which the schedule ends; at least 1.
        min_value_wrong, max_value_wrong: the reward of a wrong answer at 0 and at L tokens.
        min_value_correct, max_value_correct: the reward of a right answer at L and at 0 tokens.
        faithful: as in Open-R1, the plain cosine: beyond L tokens the reward returns towards its value at 0.

    With n tokens, r = at_L + (at_0 - at_L) (1 + cos(pi min(n / L, 1))) / 2, constant beyond L. `accuracy_reward`
    decides what is right; None where that is None.
    arXiv:2502.03373, appendix C.1.
    """
    if max_len < 1:
        raise ValueError(f"max_len = {max_len}: give the tokens at which the schedule ends, at least 1")
    return CosineScaledReward(
        max_len=max_len,
        min_value_wrong=min_value_wrong,
        max_value_wrong=max_value_wrong,
        min_value_correct=min_value_correct,
        max_value_correct=max_value_correct,
        faithful=faithful,
    )


@dataclass(frozen=True, kw_only=True)
class CosineScaledReward:
    """See `get_cosine_scaled_reward`."""

    max_len: int
    min_value_wrong: float
    max_value_wrong: float
    min_value_correct: float
    max_value_correct: float
    faithful: bool = False
    __name__ = "cosine_scaled_reward"

    @property
    def worst(self) -> float:
        """The score of a row for which the reward fails; see `verdicts.py`."""
        return self.min_value_wrong

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[str],
        completion_ids: Sequence[Any],
        **columns: Any,
    ) -> list[float | None]:
        """One float per row; None if the solution cannot be parsed."""
        right = accuracy_reward(completions, solution)
        return [
            None if score is None else self._scaled(bool(score), len(ids))
            for score, ids in zip(right, completion_ids, strict=True)
        ]

    def _scaled(self, right: bool, tokens: int) -> float:
        at_0, at_end = self.min_value_wrong, self.max_value_wrong
        if right:
            at_0, at_end = self.max_value_correct, self.min_value_correct
        progress = tokens / self.max_len
        if not self.faithful:
            progress = min(progress, 1.0)
        return at_end + 0.5 * (at_0 - at_end) * (1.0 + math.cos(math.pi * progress))


@worst("min_value_wrong")
def cosine_scaled_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    completion_ids: Sequence[Any],
    *,
    max_len: int = 1000,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    faithful: bool = False,
    **columns: Any,
) -> list[float | None]:
    """`get_cosine_scaled_reward` as a named reward with options; the defaults are Open-R1's."""
    bounds = (min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)
    return get_cosine_scaled_reward(max_len, *bounds, faithful)(completions, solution, completion_ids)
