r"""The number that an answer states: `18 dollars for 2 dozen` states 18, `8 + 9 = 17` states 17, `30-4` and `7x` none.

Nothing is worked out: an expression is no number, whatever its value. Texts are as `numbers.plain` writes them; all
patterns take linear time.
"""

import re
from fractions import Fraction

from grpo_jax.rewards.functions.digits import joined_over_spaces
from grpo_jax.rewards.functions.numbers import NUMBER, value

_HEADING = re.compile(r"[.):]\s*[^\W\d]")  # what follows the 1 in the Markdown heading "#### 1. Add them up"
_WORDING = r"\\(?:text|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|boxed|left|right|displaystyle|approx|quad)"

_CONTINUED = re.compile(
    rf"""\s{{0,9}}(?:
      (?:\*\*?|[-+^×÷·]|[xX](?=\s{{0,9}}\d))\s{{0,9}}(?!\{{?\s{{0,9}}\\(?:circ|degree))(?:[\d({{\\$.√]|[A-Za-z](?![A-Za-z]))
    | /\s{{0,9}}(?:[\d({{\\$.]|[xyznabkpqr](?![A-Za-z]))
    | (?!{_WORDING})\\[A-Za-z]                        # 6\sqrt2, 5\pi
    | (?:,|;|:|or\b|and\b|to\b|±)\s{{0,9}}[$£€]?-?\d[\d.,]{{0,64}}\s{{0,9}}(?:$|[,;]|or\b|and\b)   # a list
    | (?<=\s)[\d.]{{1,64}}\s*$                         # 3 5
    ) | ,\d | :\d | [(_√²³] | [a-zA-Z](?<![mgshlLCFkK])(?![A-Za-z])""",
    re.VERBOSE,
)
_COMPUTED = re.compile(
    r"""(?:(?:[\w)}]\s?[+/^_×÷·]|[\d)}]\s?-|[\w)}]\*\s?|\s\*\s|[<>≤≥±√|])\s?[-({\s$]{0,4}   # an operator before it
    | [A-Za-z]\s?\()$                                                                     # a function of it""",
    re.VERBOSE,
)
_ARITHMETIC = re.compile(r"[-+*/()×÷·^=$£€%\d.,\sx]*")


def number_in_block(inside: str) -> Fraction | None:
    """The number that the content of a block states, in the last side of an equation that states one."""
    sides = (_stated(side) for side in reversed(inside.split("=")))
    return next((side for side in sides if side is not None), None)


def begins_with_number(line: str) -> bool:
    """Whether a line, behind `####`, begins with a number that does not count a heading."""
    found = NUMBER.match(line := _signed(line.lstrip(" \t*")))
    return found is not None and not _HEADING.match(line, found.end())


def number_on_line(line: str) -> Fraction | None:
    """The number that a line begins with; of an equation, that of the last side that is a number."""
    line = _signed(line.lstrip(" \t*"))
    calculation = _ARITHMETIC.match(line)
    *sides, last = calculation[0].split("=") if calculation else [""]
    last += line[len(calculation[0]) if calculation else 0 :]
    numbers = (_at_start(_signed(side.strip())) for side in (last, *reversed(sides)))
    return next((number for number in numbers if number is not None), None)


def _stated(text: str) -> Fraction | None:
    text = joined_over_spaces(_signed(text.strip()))
    if NUMBER.match(text):
        return _at_start(text)
    last = None
    for last in NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None or _is_computed(text[: last.start()]) or _CONTINUED.match(text, last.end()):
        return None
    return value(last)


def _at_start(text: str) -> Fraction | None:
    """The number that a text begins with; None if it is only part of an expression."""
    found = NUMBER.match(text)
    whole = found and text[found.end() : found.end() + 1] != "!" and not _CONTINUED.match(text, found.end())
    return value(found) if found and whole else None


def _is_computed(before: str) -> bool:
    """Whether what stands before a number makes it part of an expression, such as `x+` or `\\sqrt{`."""
    return bool(_COMPUTED.search(before[-16:])) or "\\" in re.sub(_WORDING, "", before)


def _signed(inside: str) -> str:
    """The text with a leading `- ` as the sign of its number: nothing precedes it to subtract from."""
    return "-" + inside[1:].lstrip(" ") if inside.startswith("- ") else inside
