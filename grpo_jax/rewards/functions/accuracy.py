r"""Accuracy of mathematical answers, by math-verify: `\frac{1}{2}` equals `0.5`.

Same names, arguments and values as TRL 1.16's. math-verify's own time limits are switched off: they use SIGALRM,
which works on a main thread only, and cost several seconds for each hostile row. Answers that would take too long are
wrong without being parsed (`endless.py`); `RewardPool`'s deadline stops the rest, which are counted and are wrong as
well (`verdicts.py`). A call outside a pool has no time limit.
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
"""Score; the gold answer as parsed; the completion's answer as parsed."""

NO_GOLD: Judgement = (None, "[missing]", "[skipped]")
INCOMPLETE: Judgement = (0.0, "[incomplete reasoning]", "[incomplete reasoning]")


@worst(0.0)
def accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 if the completion's answer equals the solution, otherwise 0.0; None if the solution cannot be parsed.

    Args:
        completions: texts, or TRL's lists of one message.
        solution: the right answers, in LaTeX, plain, or as numbers, perhaps inside a text; None for a row without one.
        log_extra: gets the columns `solution`, `gold_parsed` and `answer_parsed`, as in TRL.

    An answer counts only in LaTeX: boxed (tried first), or a formula that words announce ("the answer is $7$").
    It is parsed more strictly than the solution, so a few forms (`\\frac43`) are not recognised in a completion.
    """
    judgements = [judge(text_of(c), gold) for c, gold in zip(completions, solution, strict=True)]
    return logged(judgements, solution, log_extra)


@worst(0.0)
def reasoning_accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    reasoning_delimiters: Sequence[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Like `accuracy_reward`, on the text after the reasoning; 0.0 if the reasoning has no end.

    Args:
        reasoning_delimiters: texts that may end the reasoning; None for `</think>` only. The text is cut at the last
            occurrence of the first delimiter in the list that it contains.

    As in TRL, reasoning without an end scores 0.0 even if the solution cannot be parsed.
    """
    ends = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    judgements = [
        INCOMPLETE if (answer := after_reasoning(text_of(c), ends)) is None else judge(answer, gold)
        for c, gold in zip(completions, solution, strict=True)
    ]
    return logged(judgements, solution, log_extra)


def after_reasoning(text: str, delimiters: Sequence[str]) -> str | None:
    """The text after the last occurrence of the first delimiter that it contains; None if it contains none."""
    end = next((d for d in delimiters if d in text), None)
    return None if end is None else text.rpartition(end)[2]


def judge(text: str, solution: Any) -> Judgement:
    """Judge one completion against one solution."""
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
    """The result of `attempt`, or `otherwise` if it raises. math-verify raises whatever sympy raises; an answer that it
    cannot handle is wrong, not an error of the reward."""
    try:
        return attempt()
    except Exception:
        return otherwise


def read(text: str, *args: Any, **kwargs: Any) -> list[Any]:
    """The answers that math-verify parses from a text, without its time limit; empty if it finds none."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    return parse(text, *args, **kwargs, parsing_timeout=None)


def judged(gold: list[Any], answer: list[Any]) -> Judgement:
    """Compare a parsed answer with the parsed gold answer, without a time limit."""
    if not gold:
        return None, "[unparseable]", "[skipped]"
    # The order matters: some results differ with the arguments swapped.
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
    except ValueError:  # Python does not convert integers of more than 4300 digits to text
        return "[too long to show]"


def logged(
    judgements: list[Judgement], solution: Sequence[Any], log_extra: Callable[[str, list], None] | None
) -> list[float | None]:
    """Log the parsed answers to the completions table, and return the scores."""
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [gold for _, gold, _ in judgements])
        log_extra("answer_parsed", [answer for _, _, answer in judgements])
    return [score for score, _, _ in judgements]
