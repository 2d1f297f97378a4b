"""Kimi's length reward (arXiv:2501.12599, section 2.3.3): favours the shorter answers to a prompt."""

from collections import defaultdict
from typing import Any, Literal

from grpo_jax.rewards.functions.verdicts import worst
from grpo_jax.rewards.load import load_reward

Correctness = Literal["boxed_math", "gsm8k", "knights_and_knaves"]


@worst(-0.5)
def kimi_length(
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[Any],
    *,
    answer: list[Any],
    judge: Correctness = "boxed_math",
    **columns: Any,
) -> list[float | None]:
    """l = 0.5 - (n - shortest) / (longest - shortest) for n tokens: a right answer gets l, a wrong one min(0, l).

    0.0 if all answers have the same length; None if the gold answer cannot be read.

    Args:
        answer: the gold answers.
        judge: the built-in reward that decides what is right; `boxed_math` is used with think=false.

    A group is the rows of one call with equal prompts. `RewardPool` passes a whole group in one call; if that fails,
    it retries the rows one by one: each is then alone and gets 0.0, or -0.5 if it times out again.
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
    """0.5 for the shortest down to -0.5 for the longest; all 0 if they have the same length."""
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    return [0.5 - (n - shortest) / (longest - shortest) for n in lengths]


def _judged(
    judge: Correctness, prompts: list[Any], completions: list[Any], answer: list[Any]
) -> list[float | None]:
    reward = load_reward("boxed_math:think=false" if judge == "boxed_math" else judge)
    return reward.function(prompts=prompts, completions=completions, answer=answer)
