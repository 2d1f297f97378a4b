"""Knights and knaves: does the answer name everyone's kind correctly?

`answer` is a column of the data, with lines such as `(1) Zoey is a knight`. A completion's claims are read from its
last `<answer>` block, in any order, numbering or punctuation; `**Zoey**: knight` counts as well. A name may have
several words (`names.py`): Rose is not Mary Rose.
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from typing import Any

from grpo_jax.rewards.functions.format import in_order, whole
from grpo_jax.rewards.functions.names import name_before
from grpo_jax.rewards.functions.text import last_block, text_of

Identities = dict[str, str]
"""Name, as `names.plain_name` writes it -> "knight" or "knave"."""
_SAID = re.compile(r"(?<=[\w.])(?:\s+is\s+|\s*:\s*)(?:a\s+)?(knight|knave)\b", re.IGNORECASE)
_KIND = re.compile(r"\b(knight|knave)\b", re.IGNORECASE)


def knights_and_knaves(completions: list[Any], *, answer: list[str], **columns: Any) -> list[float]:
    """1.0 if the answer gives everyone's kind correctly, and nobody else's; otherwise 0.0.

    Raises:
        ValueError: a gold answer names nobody.
    """
    golds = [_gold(each) for each in answer]
    return [float(_claimed(text_of(c), gold) == gold) for c, gold in zip(completions, golds, strict=True)]


def logic_rl(
    prompts: list[Any], completions: list[Any], *, answer: list[str], faithful: bool = False, **columns: Any
) -> list[float]:
    """Logic-RL's score (Xie et al. 2025, arXiv:2502.14768): +1 or -1 for the format, plus +2 for a right answer, -1.5
    if everyone is named but not correctly, and -2 otherwise or if the format is wrong. The sum is 3, -0.5, -1 or -3.

    The format requires each of the four tags exactly once, in order; a `<think>` that the prompt opens counts. Claims
    about anyone who is not in the puzzle ("so she is a knight") do not count.

    Args:
        faithful: as first published: a person is the kind that is named first after their name in a line, so "not a
            knave" is a knave, and someone named both is the first. (Later copies require "NAME is a KIND".)

    Raises:
        ValueError: a gold answer names nobody.
    """
    read = _named_first if faithful else _about
    scores = zip(prompts, completions, answer)
    return [
        _score(whole(prompt, text_of(completion)), _gold(right), read) for prompt, completion, right in scores
    ]


def _score(text: str, right: Identities, read: Callable[[str, Collection[str]], Identities | None]) -> float:
    block = last_block(text, "answer")
    if block is None or not in_order(text):
        return -3.0
    claimed = read(block[1], right)
    if claimed is None or claimed.keys() != right.keys():
        return -1.0
    return 3.0 if claimed == right else -0.5


def _gold(answer: str) -> Identities:
    found = identities(answer)
    if found is None:
        raise ValueError(f"the gold answer {answer[:60]!r} says of nobody that they are a knight or a knave")
    return found


def _claimed(text: str, right: Identities) -> Identities | None:
    """The claims of the last answer; None if there is no answer, or it names somebody both."""
    block = last_block(text, "answer")
    return None if block is None else identities(block[1], right)


def _about(text: str, people: Collection[str]) -> Identities | None:
    """The claims about these people; None if somebody is named both."""
    return identities(text, people, only=True)


def identities(text: str, people: Collection[str] = (), only: bool = False) -> Identities | None:
    """The claims in a text; None if there are none, or it names somebody both.

    Args:
        people: names as `names.plain_name` writes them, which are recognised in lower case too.
        only: claims about others do not count.
    """
    found: Identities = {}
    text = _unmarked(text)
    for said in _SAID.finditer(text):
        name = name_before(text, said.start(), people)
        if name and not (only and name not in people):
            kind = said[1].lower()
            if found.setdefault(name, kind) != kind:
                return None
    return found or None


def _unmarked(text: str) -> str:
    """The text without Markdown's emphasis, in composed Unicode; a `_` inside a word is kept."""
    text = unicodedata.normalize("NFKC", text)
    return re.sub(r"[*`]+|\w+", lambda found: found[0].strip("*`_"), text)


def _named_first(text: str, people: Collection[str]) -> Identities:
    r"""What the search `\bNAME\b.*?\b(knight|knave)\b` finds for each name, done line by line to take linear time."""
    found: Identities = {}
    for name in people:
        named = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
        lines = ((line, named.search(line)) for line in text.split("\n"))
        kinds = (_KIND.search(line, match.end()) for line, match in lines if match)
        if kind := next(filter(None, kinds), None):
            found[name] = kind[1].lower()
    return found
