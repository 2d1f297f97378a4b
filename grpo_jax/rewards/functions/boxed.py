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
    is_missing,
    logged,
)
from grpo_jax.rewards.functions.endless import without_open_formulas
from grpo_jax.rewards.functions.formulas import Formula, equal, read_formula
from grpo_jax.rewards.functions.spelling import unmarked
from grpo_jax.rewards.functions.text import last_box, text_of
from grpo_jax.rewards.functions.verdicts import worst

NO_BOX: Judgement = (0.0, "[not asked]", "[no box]")

_TEXT = re.compile(r"\\(?:text|textbf|mathrm|textit)\{([^{}]*)\}")
_WORDS = re.compile(r"(?:[A-Za-z]{3,}|[Nn][Oo])(?:[ -][A-Za-z]+)*")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_JOINT = re.compile(r"\s*,?\s*(?:and|or|,)\s*")


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
    right = None if words else formula_in(gold)
    if not words and (right is None or not _is_readable(right)):
        return None, "[unparseable]", "[skipped]"
    behind = after_reasoning(text, ["</think>"])
    if behind is None and think:
        return INCOMPLETE
    box = last_box(text if behind is None else behind)
    if box is None:
        return NO_BOX
    if right is None:
        return float(words == _plain_words(box[1])), gold, box[1]
    answer = formula_in(box[1])
    return float(equal(right, answer)), str(right), str(answer)


def formula_in(text: str) -> Formula:
    """The formula in a box, or in a gold answer: the last one in dollars, with those that `and` or a comma join to it,
    or the whole text."""
    text = without_open_formulas(text.replace(r"\$", ""))  # money
    found = list(_FORMULA.finditer(text))
    if not found:
        return read_formula(text)
    first = len(found) - 1
    while first and _JOINT.fullmatch(text[found[first - 1].end() : found[first].start()]):
        first -= 1
    return read_formula(", ".join(next(filter(None, each.groups())) for each in found[first:]))


def _is_readable(gold: Formula) -> bool:
    """Whether answers can be compared with a gold formula: it is understood, or at least written as a formula is."""
    balanced = gold.text.count("{") == gold.text.count("}")
    return gold.value is not None or (balanced and any(map(str.isalnum, gold.text)))


def _plain_words(formula: str) -> str | None:
    r"""The words of `blue` or `\text{Blue}`, which would be parsed as products of letters; None for a formula."""
    text = unmarked(_TEXT.sub(r"\1", unmarked(formula)))
    return text.casefold() if _WORDS.fullmatch(text) else None
