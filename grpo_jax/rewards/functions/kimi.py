"""Kimi's reward for length (arXiv:2501.12599, section 2.3.3): among the answers to one prompt, the short ones win."""

from collections import defaultdict
from typing import Any, Literal

from grpo_jax.rewards.functions.verdicts import worst
from grpo_jax.rewards.load import load_reward

Judge = Literal["boxed_math", "gsm8k", "knights_and_knaves"]


@worst(-0.5)
def kimi_length(
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[Any],
    *,
    answer: list[Any],
    judge: Judge = "boxed_math",
    **columns: Any,
) -> list[float | None]:
    """l = 0.5 - (n - shortest) / (longest - shortest) for n tokens: a right answer gets l, a wrong one min(0, l).

    0.0 where all are equally long; None where the gold cannot be read.

    Args:
        answer: the gold a row.
        judge: the built-in reward that says what is right; `boxed_math` does not ask it for a `</think>`.

    A group is the rows of one call with equal prompts. `RewardPool` gives a whole group in one call; where that fails
    and its rows are tried one by one, each is alone and gets 0.0, or -0.5 where even that takes too long.
    """
    right = _judged(judge, prompts, completions, answer)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[repr(prompt)].append(row)
    scores: list[float | None] = [None] * len(prompts)
    for rows in groups.values():
        for row, place in zip(rows, _places([len(completion_ids[row]) for row in rows])):
            if right[row] is not None:
                scores[row] = place if right[row] else min(0.0, place)
    return scores


def _places(lengths: list[int]) -> list[float]:
    """From 0.5 for the shortest to -0.5 for the longest; all 0 when there is no difference."""
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    return [0.5 - (n - shortest) / (longest - shortest) for n in lengths]


def _judged(
    judge: Judge, prompts: list[Any], completions: list[Any], answer: list[Any]
) -> list[float | None]:
    reward = load_reward("boxed_math:think=false" if judge == "boxed_math" else judge)
    return reward.function(prompts=prompts, completions=completions, answer=answer)
