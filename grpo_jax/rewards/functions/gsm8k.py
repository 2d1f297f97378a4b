r"""Grade-school mathematics (GSM8K): is the completion's final number right?

Numbers are compared exactly, as fractions. The answer is located first, then read:

1. With answer marks (`\boxed{..}`, `<answer>..</answer>`, or `####` followed by a number), the mark that starts last
   counts, even if it holds no number: "I do not know" gets no credit for a number in the reasoning. In a block, its
   first number counts if the block begins with it (`18 dollars for 2 dozen` is 18; after the last `=`, if there is
   one), otherwise its last number.
2. Without a mark, the last number in the text counts. This has a known weakness: "It costs 18 dollars for 2 dozen" is
   read as 2. Ask for a mark in the prompt.
"""

import re
from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.numbers import NUMBER, last_number, parse_number, plain, value
from grpo_jax.rewards.functions.text import last_block, last_box, text_of

_HEADING = re.compile(r"[.):]\s*[^\W\d]")  # what follows the 1 in the Markdown heading "#### 1. Add them up"


def gsm8k(prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any) -> list[float]:
    """1.0 if the final number (see the module's rules) equals the gold answer, otherwise 0.0.

    Args:
        answer: the gold answers: GSM8K's text ("... #### 72") or only the number.

    Raises:
        ValueError: a gold answer is not a number.
    """
    return [float(final_number(text_of(c)) == gold_number(a)) for c, a in zip(completions, answer)]


def gsm8k_strict(
    prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any
) -> list[float]:
    """Like `gsm8k`, but only a number right after the last `####` counts: the usual "strict" score."""
    return [float(hash_number(plain(text_of(c))) == gold_number(a)) for c, a in zip(completions, answer)]


def gold_number(answer: Any) -> Fraction:
    """The number of a gold answer. Raises ValueError if there is none."""
    number = parse_number(str(answer).rpartition("####")[2])
    if number is None:
        raise ValueError(f"the gold answer {str(answer)[-60:]!r} is not a number (GSM8K's end in '#### 72')")
    return number


def final_number(text: str) -> Fraction | None:
    """The number that the completion gives as its answer; None if it gives none."""
    text = plain(text)
    blocks = [block for block in (last_box(text), last_block(text, "answer")) if block]
    start, inside = max(blocks, default=(-1, ""))
    marked = hash_number(text)
    if marked is not None and text.rfind("####") > start:
        return marked
    return number_in_block(inside) if start >= 0 else last_number(text)


def hash_number(text: str) -> Fraction | None:
    """The number right after the last `####`; None if there is none, or if it numbers a heading."""
    _, mark, after = text.rpartition("####")
    match = NUMBER.match(after := _signed(after.lstrip(" \t*"))) if mark else None
    return value(match) if match and not _HEADING.match(after, match.end()) else None


def _signed(inside: str) -> str:
    """The text with a leading `- ` as the sign of its number: nothing precedes it to subtract from."""
    return "-" + inside[1:].lstrip(" ") if inside.startswith("- ") else inside


def number_in_block(inside: str) -> Fraction | None:
    """The number that the content of a block (as `plain` writes it) gives as its answer; None without one."""
    inside = _signed(inside.rpartition("=")[2].strip())
    match = NUMBER.match(inside)
    return value(match) if match else last_number(inside)
