"""Does the response stay in the prompt's language? DeepSeek-R1 rewards it (arXiv:2501.12948), Logic-RL asks for it.

Neither has published how it is counted. Here: a language is known by its script, so English and French are one, and
Chinese and Japanese are one (`cjk`). The prompt's is the one of most of its words (in a conversation: those of the last
user message). Of the response these words count (see `scripts.py` for what a word is):

- none with a capital letter: names, abbreviations, the first word of a sentence;
- none of a single Latin or Greek letter: variables;
- none that is foreign and stands in the prompt too, or in the row's `names`: it is only repeated.

    share = words in the prompt's script / words that count
"""

import re
from collections import Counter
from typing import Any, Literal

from grpo_jax.rewards.functions.scripts import words
from grpo_jax.rewards.functions.text import text_of

Script = Literal[
    "prompt", "latin", "cjk", "hangul", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai"
]
_OF_SYMBOLS = ("latin", "greek")


def language_consistency(
    prompts: list[Any],
    completions: list[Any],
    names: list[Any] | None = None,
    *,
    language: Script = "prompt",
    **columns: Any,
) -> list[float | None]:
    """The share of the response's words that are in the prompt's language, from 0.0 to 1.0; None where no word counts.

    Args:
        names: names that the row's problem uses, a list of texts a row; foreign ones do not count.
        language: the script that is asked for, or that of the prompt.
    """
    rows = zip(prompts, completions, names or [None] * len(prompts))
    return [_share(prompt, text_of(completion), given, language) for prompt, completion, given in rows]


def language_mixing(
    prompts: list[Any],
    completions: list[Any],
    names: list[Any] | None = None,
    *,
    language: Script = "prompt",
    **columns: Any,
) -> list[float | None]:
    """The penalty for it: `language_consistency` - 1, so 0.0 without a foreign word and -1.0 with no other."""
    shares = language_consistency(prompts, completions, names, language=language)
    return [None if share is None else share - 1.0 for share in shares]


def _share(prompt: Any, text: str, names: Any, language: str) -> float | None:
    asked = [(word.lower(), script) for word, script in words(_question(prompt))]
    wanted = language if language != "prompt" else _most_used(script for _, script in asked)
    if wanted is None:
        return None
    repeated = {word for word, _ in asked} | {
        word.lower() for name in _listed(names) for word, _ in words(name)
    }
    counted = [script for word, script in words(text) if _counts(word, script, wanted, repeated)]
    return counted.count(wanted) / len(counted) if counted else None


def _counts(word: str, script: str, wanted: str, repeated: set[str]) -> bool:
    if word != word.lower() or (len(word) == 1 and script in _OF_SYMBOLS):
        return False
    return script == wanted or word not in repeated


def _most_used(scripts: Any) -> str | None:
    most = Counter(scripts).most_common(1)
    return most[0][0] if most else None


def _question(prompt: Any) -> str:
    """What the user asks: a text prompt itself, or the last message that is the user's."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return text_of([{**asked[-1], "role": "assistant"}]) if asked else ""


def _listed(names: Any) -> list[str]:
    """The names of a row: a list, or one text with commas."""
    if names is None:
        return []
    return re.split(r"[,;]", names) if isinstance(names, str) else [str(name) for name in names]
