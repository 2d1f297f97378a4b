"""The text inside what a reward receives: plain strings or chat messages, and the blocks in them."""

from typing import Any


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


def last_block(text: str, tag: str) -> tuple[int, str] | None:
    """(start, inside) of the last closed `<tag>..</tag>`; None when there is none.

    Plain searches from the end, not a regular expression: `<answer>` repeated 100,000 times costs nothing.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end) if end >= 0 else -1
    return (start, text[start + len(opening) : end]) if start >= 0 else None
