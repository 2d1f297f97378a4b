r"""Grade-school mathematics (GSM8K): is the number that the completion ends with the right one?

Comparison is exact, on fractions. Where the answer stands is decided before what it is:

1. Answer marks: `\boxed{..}`, `<answer>..</answer>`, or `####` followed by a number. The mark that starts
   last in the text decides, even if it holds no number: who answers "I do not know" gets no credit for a
   number used on the way. In a block the number it begins with counts (`18 dollars for 2 dozen` is 18), after
   the last `=` if there is one; else the block's last number.
2. No mark: the last number in the text. A rule of thumb with a known weakness: a bare "It costs 18 dollars
   for 2 dozen" is read as 2. Ask for a mark in the prompt.
"""

import re
from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.numbers import NUMBER, last_number, parse_number, plain, value
from grpo_jax.rewards.functions.text import last_block, last_box, text_of

_HEADING = re.compile(r"[.):]\s*[^\W\d]")  # what follows the 1 in the Markdown heading "#### 1. Add them up"


def gsm8k(prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any) -> list[float]:
    """1.0 where the final number (see the module's rules) equals the gold answer, else 0.0.

    Args:
        answer: the gold a row, GSM8K's own text ("... #### 72") or only the number.

    Raises:
        ValueError: a gold answer is not a number.
    """
    return [float(final_number(text_of(c)) == gold_number(a)) for c, a in zip(completions, answer)]


def gsm8k_strict(
    prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any
) -> list[float]:
    """As `gsm8k`, but only a number that follows the last `####` counts: the usual "strict" score."""
    return [float(hash_number(plain(text_of(c))) == gold_number(a)) for c, a in zip(completions, answer)]


def gold_number(answer: Any) -> Fraction:
    """The number of a gold answer; ValueError when it holds none."""
    number = parse_number(str(answer).rpartition("####")[2])
    if number is None:
        raise ValueError(f"the gold answer {str(answer)[-60:]!r} is not a number (GSM8K's end in '#### 72')")
    return number


def final_number(text: str) -> Fraction | None:
    """The number that the completion gives as its answer, or None."""
    text = plain(text)
    blocks = [block for block in (last_box(text), last_block(text, "answer")) if block]
    start, inside = max(blocks, default=(-1, ""))
    marked = hash_number(text)
    if marked is not None and text.rfind("####") > start:
        return marked
    return number_in_block(inside) if start >= 0 else last_number(text)


def hash_number(text: str) -> Fraction | None:
    """The number right after the last `####`, or None (none there, or it numbers a heading)."""
    _, mark, after = text.rpartition("####")
    match = NUMBER.match(after := _signed(after.lstrip(" \t*"))) if mark else None
    return value(match) if match and not _HEADING.match(after, match.end()) else None


def _signed(inside: str) -> str:
    """The text with a sign at its beginning next to its number: nothing stands before it to be subtracted from."""
    return "-" + inside[1:].lstrip(" ") if inside.startswith("- ") else inside


def number_in_block(inside: str) -> Fraction | None:
    """The number that the inside of a block, in plain characters, gives as its answer, or None."""
    inside = _signed(inside.rpartition("=")[2].strip())
    match = NUMBER.match(inside)
    return value(match) if match else last_number(inside)
