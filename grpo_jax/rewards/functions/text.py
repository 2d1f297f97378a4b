"""Extracts the text of completions and prompts (strings or chat messages), and the blocks in a text."""

import unicodedata
from typing import Any

LONGEST_BOX = 2000
"""Characters that the content of a box may have; limits the search for its closing brace."""


def text_of(completion: Any) -> str:
    """The text of one completion: a string, or TRL's `[{"role": "assistant", "content": ...}]`.

    Of several messages (a conversation with tools), the assistant's are joined by line breaks.
    """
    if isinstance(completion, str):
        return completion
    turns = [turn for turn in completion if turn.get("role", "assistant") == "assistant"]
    return "\n".join(_content(turn) for turn in turns)


def prefill_of(prompt: Any) -> str:
    """The text that a completion continues: the prompt itself if it is a string, or a last assistant message."""
    if isinstance(prompt, str):
        return prompt
    return _content(prompt[-1]) if prompt and prompt[-1].get("role") == "assistant" else ""


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def says_something(text: str) -> bool:
    """Whether the text has a visible character: neither white space nor a zero-width or control character."""
    return any(not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc") for sign in text)


def last_block(text: str, tag: str) -> tuple[int, str] | None:
    """(start, content) of the last closed `<tag>..</tag>`; None if there is none.

    Searches from the end, not by a regular expression, so 100,000 repeated `<answer>` cost nothing.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end) if end >= 0 else -1
    return (start, text[start + len(opening) : end]) if start >= 0 else None


def last_box(text: str) -> tuple[int, str] | None:
    r"""(start, content) of the last `\boxed{..}`, with balanced braces; None if there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    opened = start + len("\\boxed{")
    depth = 1
    for index in range(opened, min(len(text), opened + LONGEST_BOX)) if start >= 0 else ():
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return start, text[opened:index]
    return None
