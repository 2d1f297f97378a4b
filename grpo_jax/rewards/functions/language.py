"""Language consistency: does the response stay in the prompt's language? As in DeepSeek-R1 (arXiv:2501.12948).

How DeepSeek-R1 and Logic-RL count is not published. Here a language is identified by its script, so English and French
are the same, and so are Chinese and Japanese (`cjk`). The prompt's script is that of most of its words (in a
conversation, of the last user message). All words of the response count (see `scripts.py` for what a word is), except

- words with a capital letter: names, abbreviations, the first word of a sentence;
- single Latin or Greek letters: variables;
- words in another script that occur in the prompt or in the row's `names`: they are only repeated.

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
    """The share of the response's words that are in the prompt's language, from 0.0 to 1.0; None if no word counts.

    Args:
        names: names in each row's problem, one list of texts per row; those in another script do not count.
        language: the required script; `prompt` for that of the prompt.
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
    """`language_consistency` - 1, a penalty: 0.0 without words in another script, -1.0 if all are in another."""
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
    """The user's question: the text prompt itself, or the last user message."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return text_of([{**asked[-1], "role": "assistant"}]) if asked else ""


def _listed(names: Any) -> list[str]:
    """The names of a row, which is a list or a text with commas."""
    if names is None:
        return []
    return re.split(r"[,;]", names) if isinstance(names, str) else [str(name) for name in names]
