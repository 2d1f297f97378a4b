r"""Boxed mathematics, as DeepScaleR and others ask for it: `.. </think> .. \boxed{\frac{4}{3}}`.

Gold and answer are read in the same way, each as what stands in a box. Where they are read differently, as
elsewhere (a gold freely, an answer strictly), rightly boxed answers such as `\frac43` and `11\sqrt2` are lost.
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
    read,
    told,
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
    r"""1.0 where the last box behind the last `</think>` equals the gold, 0.0 where not; None where the gold is none.

    Args:
        answer: the gold a row: a formula, plain or in dollars, the number that GSM8K's text ends with, or a text
            whose last box holds it.
        log_extra: told `solution`, `gold_parsed` and `answer_parsed`.
        think: without a `</think>` the score is 0.0; with false the whole text then counts.

    Equal is what math-verify calls equal; a gold of words alone (`blue`) must be the same words. There is no time limit
    but `RewardPool`'s. Source: DeepScaleR; None is Open-R1's.
    """
    judgements = [
        NO_GOLD if is_missing(gold) else _judge(text_of(c), gold_of(gold), think)
        for c, gold in zip(completions, answer, strict=True)
    ]
    return told(judgements, answer, log_extra)


def gold_of(answer: Any) -> str:
    """The formula that a gold answer consists of."""
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
    """As `in_box`, of what a model wrote: nothing where that is better not read."""
    return [] if is_endless(formula) else attempted(lambda: in_box(formula), [])


def in_box(formula: str) -> list[Any]:
    """What math-verify understands of a box's inside. A mixed number it would take for a product: `3 1/2`."""
    formula = formula.replace(r"\$", "")  # money
    if any(mark in formula for mark in _FORMULA):
        return read(formula)
    mended = _MIXED.sub(r"\1\\frac{\2}{\3}", formula)
    return read(r"\boxed{" + mended + "}") if mended.strip() else []


def _plain_words(formula: str) -> str | None:
    r"""The words of `blue` or `\text{Blue}`, which else were products of letters; None for a formula."""
    text = _TEXT.sub(r"\1", formula).strip(" .")
    return text.casefold() if _WORDS.fullmatch(text) else None
