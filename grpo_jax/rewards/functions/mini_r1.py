"""Rewards for Countdown as in two publications: Mini-R1's two, and TinyZero's one.

By default they correct faults of the published rules; `faithful=true` keeps these faults, as described below. Neither
form evaluates the model's text with `eval`: `expressions.py` computes it, and refuses powers, `//`, decimals and `--3`.
"""

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from grpo_jax.rewards.functions.countdown import given_numbers, solves
from grpo_jax.rewards.functions.expressions import parse
from grpo_jax.rewards.functions.format import is_think_answer
from grpo_jax.rewards.functions.text import last_block, text_of

_NEAR = Fraction(1, 100_000)
_FORMAT_POINTS = 0.1


def mini_r1_format(completions: list[Any], *, faithful: bool = False, **columns: Any) -> list[float]:
    r"""1.0 for one thought, then one answer, and nothing else; else 0.0. The prompt is assumed to open the thought.

    Args:
        faithful: as published: blocks may be empty, a second `<answer>` may follow, exactly one line break separates
            `</think>` and `<answer>`, and an `<|im_end|>` is refused.
    """
    is_right = _is_published if faithful else lambda text: is_think_answer(text, prefilled=True)
    return [float(is_right(text_of(c))) for c in completions]


def _is_published(text: str) -> bool:
    r"""Whether no `<think>` comes before the first `</think>`, `\n<answer>` right after it, and `</answer>` last."""
    thought, closing, rest = text.partition("</think>")
    rest = rest.removesuffix("\n")
    opening = "\n<answer>"
    return (
        bool(closing)
        and "<think>" not in thought
        and rest.startswith(opening)
        and rest[len(opening) :].endswith("</answer>")
    )


# A reward's parameters name the columns that it needs: `mini_r1_equation` and `tinyzero` repeat those of `countdown`.


def mini_r1_equation(
    prompts: list[Any],
    completions: list[Any],
    numbers: list[Any] | None = None,
    *,
    target: list[Any],
    nums: list[Any] | None = None,
    faithful: bool = False,
    **columns: Any,
) -> list[float]:
    """1.0 if the `<answer>` reaches the target with exactly the given numbers, by the rule of `countdown`.

    Args:
        numbers, target, nums: as for `countdown`.
        faithful: as published: the first `<answer>` that is on one line counts, the value may differ from the target by
            less than 1e-5, and `= target` after the expression is refused.
    """
    right = _nearly_solves if faithful else solves
    given = given_numbers(numbers, nums, "mini_r1_equation")
    return [float(right(text_of(c), n, t)) for c, n, t in zip(completions, given, target)]


def _nearly_solves(text: str, numbers: Iterable[Any], target: Any) -> bool:
    expression = parse(_first_on_a_line(text))
    if expression is None or Counter(expression.numbers) != Counter(int(n) for n in numbers):
        return False
    return abs(expression.value - Fraction(str(target))) < _NEAR


def _first_on_a_line(text: str) -> str:
    """The content of the first `<answer>` that is closed on the same line; empty if there is none."""
    for line in text.split("\n"):
        _, _, rest = line.partition("<answer>")
        inside, closing, _ = rest.partition("</answer>")
        if closing:
            return inside
    return ""


def tinyzero(
    prompts: list[Any],
    completions: list[Any],
    numbers: list[Any] | None = None,
    *,
    target: list[Any],
    nums: list[Any] | None = None,
    faithful: bool = False,
    **columns: Any,
) -> list[float]:
    """1.0 if the last `<answer>` is right by the rule of `countdown`, 0.1 if it is wrong, 0.0 without one.

    Args:
        numbers, target, nums: as for `countdown`.
        faithful: as published: only the last line of the text counts, an empty `<answer>` scores 0.1, the value may
            differ from the target by less than 1e-5, and `= target` after the expression is refused.
    """
    given = given_numbers(numbers, nums, "tinyzero")
    score = _published_points if faithful else _points
    return [score(text_of(c), n, t) for c, n, t in zip(completions, given, target)]


def _points(text: str, numbers: Iterable[Any], target: Any) -> float:
    block = last_block(text, "answer")
    if block is None or not block[1].strip():
        return 0.0
    return 1.0 if solves(text, numbers, target) else _FORMAT_POINTS


def _published_points(text: str, numbers: Iterable[Any], target: Any) -> float:
    blocks = last_block(text.rpartition("\n")[2], "answer")
    if blocks is None:
        return 0.0
    return 1.0 if _nearly_solves(f"<answer>{blocks[1]}</answer>", numbers, target) else _FORMAT_POINTS
