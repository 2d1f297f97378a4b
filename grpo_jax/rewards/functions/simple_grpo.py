"""Rewards that are negative for wrong answers: simple_GRPO's two (sum 2.25, 0.25, 0 or -2) and Reinforce-Lite's."""

import re
from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.format import is_think_answer, opens_thought
from grpo_jax.rewards.functions.gsm8k import final_number, gold_number
from grpo_jax.rewards.functions.numbers import LONGEST, plain
from grpo_jax.rewards.functions.stated import number_in_block
from grpo_jax.rewards.functions.text import text_of

_UNSIGNED = re.compile(r"\d+\.\d+|\d+/\d+|\d+", re.ASCII)


def simple_grpo_correct(
    completions: list[Any], *, answer: list[Any], faithful: bool = False, **columns: Any
) -> list[float]:
    """1.0 if the final number equals the gold answer, otherwise -1.0.

    Args:
        answer: the gold answers: GSM8K's text ("... #### 72") or only the number.
        faithful: as published: the last digits in the text count, without a sign, so that `-7` is read as 7 and `1,080`
            as 80. By default the rule is that of `gsm8k`.

    Raises:
        ValueError: a gold answer is not a number.
    """
    read = _last_unsigned if faithful else final_number
    return [1.0 if read(text_of(c)) == gold_number(a) else -1.0 for c, a in zip(completions, answer)]


def _last_unsigned(text: str) -> Fraction | None:
    last = None
    for last in _UNSIGNED.finditer(text):  # noqa: B007
        pass
    if last is None or len(last[0]) > LONGEST:
        return None
    bottom = last[0].partition("/")[2]
    return None if bottom and not int(bottom) else Fraction(last[0])


def simple_grpo_format(
    prompts: list[Any], completions: list[Any], *, faithful: bool = False, **columns: Any
) -> list[float]:
    """1.25 for one thought, then one answer, and nothing else; otherwise -1.0. The rule of `think_answer_format`.

    Args:
        faithful: as published: blocks may be empty; an `<|im_end|>` is refused, and so is a text whose thought is
            opened by the prompt.
    """
    texts = [(text_of(c), opens_thought(p)) for p, c in zip(prompts, completions)]
    formed = [_is_published(text) if faithful else is_think_answer(text, opened) for text, opened in texts]
    return [1.25 if good else -1.0 for good in formed]


def _is_published(text: str) -> bool:
    """Whether the text is `<think>..</think>`, line breaks or spaces, then `<answer>..</answer>`, without more tags."""
    counts = [text.count(f"<{tag}>") + text.count(f"</{tag}>") for tag in ("think", "answer")]
    text = text.removesuffix("\n")
    if counts != [2, 2] or not text.startswith("<think>") or not text.endswith("</answer>"):
        return False
    return text.partition("</think>")[2].lstrip("\n ").startswith("<answer>")


def reinforce_lite(completions: list[Any], *, answer: list[Any], **columns: Any) -> list[float]:
    """1.0 if the number after the last `<answer>` equals the gold answer, otherwise -1.0. Reinforce-Lite on GSM8K.

    The block need not be closed. Its number is read as in `gsm8k.py`.

    Raises:
        ValueError: a gold answer is not a number.
    """
    return [
        1.0 if _behind_answer(text_of(c)) == gold_number(a) else -1.0 for c, a in zip(completions, answer)
    ]


def _behind_answer(text: str) -> Fraction | None:
    _, opening, rest = plain(text).rpartition("<answer>")
    return number_in_block(rest.partition("</answer>")[0]) if opening else None
