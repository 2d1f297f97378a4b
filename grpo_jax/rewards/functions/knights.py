"""Knights and knaves: has everyone been told right?

`answer` is the data's own column, lines such as `(1) Zoey is a knight`; what a completion says is read from its
last `<answer>` block, whatever the order, the numbering or the punctuation; `**Zoey**: knight` will do.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

from grpo_jax.rewards.functions.format import in_order, whole
from grpo_jax.rewards.functions.text import last_block, text_of

Told = dict[str, str]
"""Who is what: a name in lower case, "knight" or "knave"."""
_SAID = re.compile(r"\b(\w+)(?:\s+is\s+|\s*:\s*)(?:a\s+)?(knight|knave)\b", re.IGNORECASE)
_KIND = re.compile(r"\b(knight|knave)\b", re.IGNORECASE)


def knights_and_knaves(completions: list[Any], *, answer: list[str], **columns: Any) -> list[float]:
    """1.0 where everyone is named once for what they are, and nobody else is; 0.0 otherwise.

    Raises:
        ValueError: a gold answer names nobody.
    """
    return [float(_told(text_of(c)) == _gold(a)) for c, a in zip(completions, answer)]


def logic_rl(
    prompts: list[Any], completions: list[Any], *, answer: list[str], faithful: bool = False, **columns: Any
) -> list[float]:
    """Logic-RL's score (Xie et al. 2025, arXiv:2502.14768): +1 or -1 for the format, and for the answer +2 where it is
    right, -1.5 where everyone is named but not rightly, -2 where not, or where the format is wrong: 3, -0.5, -1 or -3.

    The format: each of the four tags exactly once, in their order; a `<think>` that the prompt has opened counts. What
    the answer says of others than the puzzle's people ("so she is a knight") does not count.

    Args:
        faithful: a person is what is named first behind their name, in its line: "not a knave" is a knave, and who is
            said to be both is the first. The search as published at first; later copies want "NAME is a KIND".

    Raises:
        ValueError: a gold answer names nobody.
    """
    read = _named_first if faithful else identities
    scores = zip(prompts, completions, answer)
    return [_score(whole(prompt, text_of(said)), _gold(right), read) for prompt, said, right in scores]


def _score(text: str, right: Told, read: Callable[[str, Collection[str]], Told | None]) -> float:
    block = last_block(text, "answer")
    if block is None or not in_order(text):
        return -3.0
    told = read(block[1], right)
    if told is None or told.keys() != right.keys():
        return -1.0
    return 3.0 if told == right else -0.5


def _gold(answer: str) -> Told:
    found = identities(answer)
    if found is None:
        raise ValueError(f"the gold answer {answer[:60]!r} says of nobody that they are a knight or a knave")
    return found


def _told(text: str) -> Told | None:
    """Who is said to be what in the last answer; None where there is none, or somebody is said to be both."""
    block = last_block(text, "answer")
    return None if block is None else identities(block[1])


def identities(text: str, people: Collection[str] | None = None) -> Told | None:
    """Who is said to be what; None where nobody is, or somebody is said to be both.

    Args:
        people: their names in lower case; what is said of others does not count. None: everybody's does.
    """
    found: Told = {}
    for name, kind in _SAID.findall(_unmarked(text).lower()):
        if people is not None and name not in people:
            continue
        if found.setdefault(name, kind) != kind:
            return None
    return found or None


def _unmarked(text: str) -> str:
    """Without Markdown's emphasis; a `_` inside of a word is a letter."""
    return re.sub(r"[*`]+|\w+", lambda found: found[0].strip("*`_"), text)


def _named_first(text: str, people: Collection[str]) -> Told:
    r"""What the search `\bNAME\b.*?\b(knight|knave)\b` finds for each, line by line, so that its cost is linear."""
    found: Told = {}
    for name in people:
        named = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
        lines = ((line, named.search(line)) for line in text.split("\n"))
        kinds = (_KIND.search(line, at.end()) for line, at in lines if at)
        if kind := next(filter(None, kinds), None):
            found[name] = kind[1].lower()
    return found
