"""Worked answers in one form, `<think>reasoning</think>answer`, whatever marks a data set has put around them."""

import re
from collections.abc import Sequence
from typing import Any

_REASONING = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_ANSWER = ("<|begin_of_solution|>", "<|end_of_solution|>")
_ROLES = {"human": "user", "gpt": "assistant"}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def traced(reasoning: Any, answer: Any) -> str:
    """The completion that consists of these two. ValueError when either is missing."""
    for part, what in ((reasoning, "reasoning"), (answer, "answer behind the reasoning")):
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"there is no {what}")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{answer.strip()}"


def normalised(text: Any) -> str:
    """A completion that marks its reasoning, with our marks. ValueError for one that marks none or never ends it."""
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
    r"""What stands in the last `\boxed{..}` or `\fbox{..}` of a text, or behind a `\boxed ` without braces; or None."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0] or None
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start + 1 : at].strip() or None
    return None


def turns(messages: Any) -> list[dict[str, str]]:
    """A conversation as {role, content}, from that or from {from, value}. ValueError for anything else."""
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
    """A conversation up to its last answer, which is what the model is asked."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def said(messages: list[dict[str, str]]) -> str:
    """Its last answer. ValueError when the conversation ends otherwise."""
    if messages[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with the assistant")
    return messages[-1]["content"]
