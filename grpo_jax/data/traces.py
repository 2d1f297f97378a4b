"""Converts worked solutions to the form `<think>reasoning</think>answer` from the marks of various data sets."""

import re
from collections.abc import Sequence
from typing import Any

_REASONING = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_ANSWER = ("<|begin_of_solution|>", "<|end_of_solution|>")
_ROLES = {"human": "user", "gpt": "assistant"}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def traced(reasoning: Any, answer: Any) -> str:
    """The completion with this reasoning and answer. Raises ValueError if either is missing."""
    for part, name in ((reasoning, "reasoning"), (answer, "answer behind the reasoning")):
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"there is no {name}")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{answer.strip()}"


def normalised(text: Any) -> str:
    """A completion with marked reasoning, in our form. Raises ValueError if none is marked, or it never ends."""
    if not isinstance(text, str):
        raise ValueError("the completion is not text")
    for opened, closed in _REASONING:
        before, mark, after = text.partition(closed)
        if mark:
            return traced(before.replace(opened, "", 1), _unwrapped(after))
        if opened in text:
            raise ValueError("the reasoning never ends")
    raise ValueError("no reasoning is marked in the completion")


def _unwrapped(answer: str) -> str:
    opened, closed = _ANSWER
    _, mark, inside = answer.partition(opened)
    if mark and closed not in inside:
        raise ValueError("the solution never ends")
    return inside.partition(closed)[0] if mark else answer


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{..}`, `\fbox{..}` or `\boxed ` without braces in a text; None without one."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0] or None
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 1 : index].strip() or None
    return None


def turns(messages: Any) -> list[dict[str, str]]:
    """A conversation as {role, content} messages, from those or from {from, value}. Raises ValueError otherwise."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("there is no conversation")
    return [_turn(item) for item in messages]


def _turn(item: Any) -> dict[str, str]:
    values = item if isinstance(item, dict) else {}
    role, content = values.get("role", values.get("from")), values.get("content", values.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("a turn of the conversation has no role or no text")
    return {"role": _ROLES.get(role, role), "content": content}


def asked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation without its last answer: the model's prompt."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def said(messages: list[dict[str, str]]) -> str:
    """A conversation's last answer. Raises ValueError if it does not end with the assistant."""
    if messages[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with the assistant")
    return messages[-1]["content"]
