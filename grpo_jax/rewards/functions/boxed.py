r"""Boxed mathematics, as in DeepScaleR: `.. </think> .. \boxed{\frac{4}{3}}`.

Gold and answer are parsed in the same way, as the content of a box. Rewards that parse them differently (`accuracy.py`)
do not recognise right answers such as `\frac43` and `11\sqrt2`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.rewards.functions.accuracy import (
    INCOMPLETE,
    NO_GOLD,
    Judgement,
    after_reasoning,
    attempted,
    is_missing,
    judged,
    logged,
    read,
)
from grpo_jax.rewards.functions.endless import is_endless
from grpo_jax.rewards.functions.text import last_box, text_of
from grpo_jax.rewards.functions.verdicts import worst

NO_BOX: Judgement = (0.0, "[not asked]", "[no box]")

_MIXED = re.compile(r"(?<![\d.,/])(\d{1,12}) (\d{1,12})/(\d{1,12})(?![\d.,/])")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|textit)\{([^{}]*)\}")
_WORDS = re.compile(r"(?:[A-Za-z]{3,}|[Nn][Oo])(?:[ -][A-Za-z]+)*")
_FORMULA = ("$", r"\(", r"\[")


@worst(0.0)
def boxed_math(
    completions: Sequence[Any],
    answer: Sequence[Any],
    log_extra: Callable[[str, list], None] | None = None,
    *,
    think: bool = True,
    **columns: Any,
) -> list[float | None]:
    r"""1.0 if the last box after the last `</think>` equals the gold, otherwise 0.0; None if the gold cannot be parsed.

    Args:
        answer: the gold answers: formulas, plain or in dollars, GSM8K's text with its final number, or texts whose last
            box holds the answer.
        log_extra: gets the columns `solution`, `gold_parsed` and `answer_parsed`.
        think: true: a text without `</think>` scores 0.0; false: the whole text then counts.

    math-verify decides what is equal; a gold answer of words alone (`blue`) must match word for word. The only time
    limit is `RewardPool`'s. Source: DeepScaleR; None is from Open-R1.
    """
    judgements = [
        NO_GOLD if is_missing(gold) else _judge(text_of(c), gold_of(gold), think)
        for c, gold in zip(completions, answer, strict=True)
    ]
    return logged(judgements, answer, log_extra)


def gold_of(answer: Any) -> str:
    """The formula in a gold answer."""
    text = str(answer).rpartition("####")[2].strip()
    if box := last_box(text):
        return box[1]
    for mark in ("$$", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inside = text[len(mark) : -len(mark)]
            return text if mark in inside else inside
    return text


def _judge(text: str, gold: str, think: bool) -> Judgement:
    words = _plain_words(gold)
    understood = [] if words else in_box(gold)
    if not words and (not understood or isinstance(understood[0], str)):
        return None, "[unparseable]", "[skipped]"
    behind = after_reasoning(text, ["</think>"])
    if behind is None and think:
        return INCOMPLETE
    box = last_box(text if behind is None else behind)
    if box is None:
        return NO_BOX
    if words:
        return float(words == _plain_words(box[1])), gold, box[1]
    return judged(understood, answer_in_box(box[1]))


def answer_in_box(formula: str) -> list[Any]:
    """Like `in_box`, for a model's formula: empty if it would take too long to parse."""
    return [] if is_endless(formula) else attempted(lambda: in_box(formula), [])


def in_box(formula: str) -> list[Any]:
    """The answers that math-verify parses from the content of a box. Mixed numbers (`3 1/2`) are rewritten first: it
    would read them as products."""
    formula = formula.replace(r"\$", "")  # money
    if any(mark in formula for mark in _FORMULA):
        return read(formula)
    rewritten = _MIXED.sub(r"\1\\frac{\2}{\3}", formula)
    return read(r"\boxed{" + rewritten + "}") if rewritten.strip() else []


def _plain_words(formula: str) -> str | None:
    r"""The words of `blue` or `\text{Blue}`, which would be parsed as products of letters; None for a formula."""
    text = _TEXT.sub(r"\1", formula).strip(" .")
    return text.casefold() if _WORDS.fullmatch(text) else None
