"""Knights and knaves: has everyone been told right?

`answer` is the data's own column, lines such as `(1) Zoey is a knight`; what a completion says is read from its
last `<answer>` block, whatever the order, the numbering or the punctuation.
"""

import re
from typing import Any

from grpo_jax.rewards.format import in_order, whole
from grpo_jax.rewards.text import last_block, text_of

_SAID = re.compile(r"\b(\w+)\s+is\s+(?:a\s+)?(knight|knave)\b", re.IGNORECASE)


def knights_and_knaves(completions: list[Any], *, answer: list[str], **columns: Any) -> list[float]:
    """1.0 where everyone is named once for what they are, and nobody else is; 0.0 otherwise.

    Raises:
        ValueError: a gold answer names nobody.
    """
    return [float(_told(text_of(c)) == _gold(a)) for c, a in zip(completions, answer)]


def logic_rl(prompts: list[Any], completions: list[Any], *, answer: list[str], **columns: Any) -> list[float]:
    """Logic-RL's score (Xie et al. 2025, arXiv:2502.14768): +1 or -1 for the format, and for the answer +2 where it is
    right, -1.5 where everyone is named but not rightly, -2 where not, or where the format is wrong: 3, -0.5, -1 or -3.

    The format: each of the four tags exactly once, in their order; a `<think>` that the prompt has opened counts.

    Raises:
        ValueError: a gold answer names nobody.
    """
    scores = zip(prompts, completions, answer)
    return [_score(whole(prompt, text_of(completion)), _gold(right)) for prompt, completion, right in scores]


def _score(text: str, right: dict[str, str]) -> float:
    if not in_order(text):
        return -3.0
    told = _told(text)
    if told is None or told.keys() != right.keys():
        return -1.0
    return 3.0 if told == right else -0.5


def _gold(answer: str) -> dict[str, str]:
    found = identities(answer)
    if found is None:
        raise ValueError(f"the gold answer {answer[:60]!r} says of nobody that they are a knight or a knave")
    return found


def _told(text: str) -> dict[str, str] | None:
    """Who is said to be what in the last answer; None where there is none, or somebody is said to be both."""
    block = last_block(text, "answer")
    return None if block is None else identities(block[1])


def identities(text: str) -> dict[str, str] | None:
    """Who is said to be what; None where nobody is, or somebody is said to be both."""
    found: dict[str, str] = {}
    for name, kind in _SAID.findall(text):
        if found.setdefault(name.lower(), kind.lower()) != kind.lower():
            return None
    return found or None
