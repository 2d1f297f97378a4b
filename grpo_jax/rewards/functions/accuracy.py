r"""Is the completion's mathematical answer the right one? Judged by math-verify: `\frac{1}{2}` equals `0.5`.

Same names, arguments and values as TRL 1.16's. math-verify's own time limits are switched off: they rest on
SIGALRM, which works on a main thread only, and swallow several seconds for each hostile row. Answers that would take
for ever are refused unread (`endless.py`), as wrong; `RewardPool`'s deadline stands in for the rest, which are counted
and wrong as well (`verdicts.py`). A call outside a pool has no limit at all.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from grpo_jax.rewards.functions.endless import is_endless, without_open_formulas
from grpo_jax.rewards.functions.text import last_box, text_of
from grpo_jax.rewards.functions.verdicts import worst

T = TypeVar("T")

Judgement = tuple[float | None, str, str]
"""Score; what was understood of the gold; what was understood of the completion."""

NO_GOLD: Judgement = (None, "[missing]", "[skipped]")
INCOMPLETE: Judgement = (0.0, "[incomplete reasoning]", "[incomplete reasoning]")


@worst(0.0)
def accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's answer equals the solution, 0.0 where not; None where the solution says nothing.

    Args:
        completions: texts, or TRL's lists of one message.
        solution: the right answer a row, in LaTeX, plain, or a number; it may stand inside a text. None: there is none.
        log_extra: told `solution`, `gold_parsed` and `answer_parsed`, as TRL's.

    An answer counts only in LaTeX: boxed (tried first), or a formula that words announce ("the answer is $7$").
    It is read more strictly than the solution, so a few forms (`\\frac43`) are lost on the completion's side.
    """
    judgements = [judge(text_of(c), gold) for c, gold in zip(completions, solution, strict=True)]
    return told(judgements, solution, log_extra)


@worst(0.0)
def reasoning_accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    reasoning_delimiters: Sequence[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """As `accuracy_reward` on what follows the reasoning; 0.0 where the reasoning never ends.

    Args:
        reasoning_delimiters: what may end the reasoning (None: `</think>`). The first of them, in the order
            of the list, that the completion holds decides, and its last occurrence does the cut.

    As in TRL, reasoning without an end scores 0.0 even where the solution cannot be read.
    """
    ends = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    judgements = [
        INCOMPLETE if (answer := after_reasoning(text_of(c), ends)) is None else judge(answer, gold)
        for c, gold in zip(completions, solution, strict=True)
    ]
    return told(judgements, solution, log_extra)


def after_reasoning(text: str, delimiters: Sequence[str]) -> str | None:
    """What stands behind the last occurrence of the first delimiter that the text holds; None without any."""
    end = next((d for d in delimiters if d in text), None)
    return None if end is None else text.rpartition(end)[2]


def judge(text: str, solution: Any) -> Judgement:
    """One text against one solution."""
    if is_missing(solution):
        return NO_GOLD
    box = last_box(text)
    answer: list[Any] = []
    if not is_endless(box[1] if box else text):
        closed = without_open_formulas(text)
        answer = attempted(lambda: read(closed, [_in_latex()], extraction_mode="first_match"), [])
    return judged(read(str(solution)), answer)


def is_missing(gold: Any) -> bool:
    """Whether a row has no gold answer: None, or the NaN that stands for it in a table."""
    return gold is None or (isinstance(gold, float) and math.isnan(gold))


def attempted(attempt: Callable[[], T], otherwise: T) -> T:
    """What an attempt at a model's words gives. math-verify raises whatever sympy does; an answer that it cannot take
    is wrong, and no fault of the reward's."""
    try:
        return attempt()
    except Exception:
        return otherwise


def read(text: str, *how: Any, **more: Any) -> list[Any]:
    """What math-verify understands of a text, without its time limit; an empty list when that is nothing."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    return parse(text, *how, **more, parsing_timeout=None)


def judged(gold: list[Any], answer: list[Any]) -> Judgement:
    """What was read of an answer against what was read of the gold; without a time limit."""
    if not gold:
        return None, "[unparseable]", "[skipped]"
    # In this order: swapped, some results differ.
    right = attempted(lambda: verify(gold, answer, timeout_seconds=None), False)
    return float(right), _shown(gold), _shown(answer) if answer else "[unparseable]"


def _in_latex() -> LatexExtractionConfig:
    return LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,  # before any other formula in the text
        try_extract_without_anchor=False,
    )


def _shown(parsed: list[Any]) -> str:
    try:
        return str(parsed)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "[too long to show]"


def told(
    judgements: list[Judgement], solution: Sequence[Any], log_extra: Callable[[str, list], None] | None
) -> list[float | None]:
    """The scores; the rest goes to the completions table."""
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [gold for _, gold, _ in judgements])
        log_extra("answer_parsed", [answer for _, _, answer in judgements])
    return [score for score, _, _ in judgements]
