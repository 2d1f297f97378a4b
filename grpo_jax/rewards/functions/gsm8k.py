r"""Grade-school mathematics (GSM8K): is the completion's final number right?

Numbers are compared exactly, as fractions. The answer is located first, then read:

1. With answer marks (`\boxed{..}`, `<answer>..</answer>`, or `####` followed by a number), the mark that starts last
   counts, even if it holds no number: "I do not know" gets no credit for a number in the reasoning. In a block, its
   first number counts if the block begins with it (`18 dollars for 2 dozen` is 18), otherwise its last number. Of an
   equation, the last side that is a number counts. A number that is part of an expression (`2^6`, `30-4`, `7x`) or of a
   list is none (`stated.py`).
2. Without a mark, the last number in the text counts. This has a known weakness: "It costs 18 dollars for 2 dozen" is
   read as 2. Ask for a mark in the prompt.
"""

from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.numbers import last_number, parse_number, plain
from grpo_jax.rewards.functions.stated import begins_with_number, number_in_block, number_on_line
from grpo_jax.rewards.functions.text import last_block, last_box, text_of


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
    line = last_hash_line(text)
    start, inside = max(
        (block for block in (last_box(text), last_block(text, "answer")) if block), default=(-1, "")
    )
    if line and line[0] > start:
        return number_on_line(line[1])
    return number_in_block(inside) if start >= 0 else last_number(text)


def last_hash_line(text: str) -> tuple[int, str] | None:
    """(start, rest of the line) of the last `####`, if a number follows it that does not count a heading."""
    start = text.rfind("####")
    line = text[start + 4 :].partition("\n")[0]
    return (start, line) if start >= 0 and begins_with_number(line) else None


def hash_number(text: str) -> Fraction | None:
    """The number right after the last `####`; None if there is none, or if it numbers a heading."""
    line = last_hash_line(text)
    return number_on_line(line[1]) if line else None
