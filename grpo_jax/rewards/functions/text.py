"""The text inside what a reward receives: plain strings or chat messages, and the blocks in them."""

import unicodedata
from typing import Any

LONGEST_BOX = 2000
"""Characters of what a box may hold; bounds the search for its closing brace."""


def text_of(completion: Any) -> str:
    """The text of one completion: a string, or TRL's `[{"role": "assistant", "content": ...}]`.

    Several messages (a conversation with tools) give their assistant turns, one after the other.
    """
    if isinstance(completion, str):
        return completion
    turns = [turn for turn in completion if turn.get("role", "assistant") == "assistant"]
    return "\n".join(_content(turn) for turn in turns)


def prefill_of(prompt: Any) -> str:
    """What the prompt already says in the model's name: a string's own text, or a last assistant message."""
    if isinstance(prompt, str):
        return prompt
    return _content(prompt[-1]) if prompt and prompt[-1].get("role") == "assistant" else ""


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def says_something(text: str) -> bool:
    """Whether anything in it can be seen: no white space, no joiner or mark of direction, which have no width."""
    return any(not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc") for sign in text)


def last_block(text: str, tag: str) -> tuple[int, str] | None:
    """(start, inside) of the last closed `<tag>..</tag>`; None when there is none.

    Plain searches from the end, not a regular expression: `<answer>` repeated 100,000 times costs nothing.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end) if end >= 0 else -1
    return (start, text[start + len(opening) : end]) if start >= 0 else None


def last_box(text: str) -> tuple[int, str] | None:
    r"""(start, inside) of the last `\boxed{..}` with balanced braces, or None when it is never closed."""
    start = text.rfind("\\boxed{")
    opened = start + len("\\boxed{")
    depth = 1
    for at in range(opened, min(len(text), opened + LONGEST_BOX)) if start >= 0 else ():
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return start, text[opened:at]
    return None
