r"""Numbers as people and models write them, read exactly: `-7`, `1,080`, `$18.50`, `3 1/2`, `\frac{7}{2}`.

Every value is a `Fraction`: two spellings of the same number are equal and nothing is rounded.
All patterns take linear time: they have no nested repeats.
"""

import re
from fractions import Fraction

from grpo_jax.rewards.functions.digits import joined

LONGEST = 64
"""The most characters of a number: converting 100,000 digits to an integer takes quadratic time."""

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"

# A sign counts only if no operand precedes it: `10-7` holds 10 and 7, `x = -7` holds -7.
NUMBER = re.compile(
    rf"""(?<!\w)(?:(?<!\))(?P<sign>[-+]))?(?:[$£€](?P<sign2>[-+])?)?
    (?P<whole>{_PLAIN})(?P<exponent>[eE][-+]?\d{{1,2}}(?!\d))?
    (?:\ (?P<top>\d+)/(?P<bottom>\d+) | /(?P<divisor>{_PLAIN}))?""",
    re.ASCII | re.VERBOSE,
)

_REPLACED = {
    "−": "-",
    "–": "-",
    "\u2010": "-",
    "\u2011": "-",
    r"\$": "$",
    r"\%": "%",
    "{,}": ",",
    r"\times": "×",
    r"\cdot": "·",
    r"\div": "÷",
}
_KERNING = re.compile(r"(?<!\d)\\[,;:]|\\[,;:](?!\d|\\[dt]?frac)")  # spacing that parts no two numbers
_FRACTION = re.compile(r"([0-9]?)\\[dt]?frac ?\{ ?(-?[0-9.]{1,30}) ?\} ?\{ ?([0-9.]{1,30}) ?\}")
_SHORT_FRACTION = re.compile(r"([0-9]?)\\[dt]?frac ?([0-9]) ?([0-9])")


def plain(text: str) -> str:
    """Write LaTeX's and typography's spellings of numbers in plain characters, groups of digits joined."""
    text = joined(_KERNING.sub("", text))
    for written, meant in _REPLACED.items():
        text = text.replace(written, meant)
    if "frac" not in text:
        return text
    for pattern in (_FRACTION, _SHORT_FRACTION):
        # After a digit it is part of a mixed number: `3\frac12` is `3 1/2`, not 31/2.
        text = pattern.sub(lambda m: f"{m[1]}{' ' if m[1] else ''}{m[2]}/{m[3]}", text)
    return text


def value(match: re.Match[str]) -> Fraction | None:
    """The exact value of a match of `NUMBER`; None if it is longer than `LONGEST` or divides by zero."""
    if len(match.group()) > LONGEST:
        return None
    part = match.groupdict()
    size = Fraction(part["whole"].replace(",", "") + (part["exponent"] or ""))
    try:
        if part["divisor"]:
            size /= Fraction(part["divisor"].replace(",", ""))
        elif part["bottom"]:
            size = _mixed(size, Fraction(int(part["top"]), int(part["bottom"])))
    except ZeroDivisionError:
        return None
    return -size if "-" in (part["sign"], part["sign2"]) else size


def _mixed(whole: Fraction, part: Fraction) -> Fraction:
    """A mixed number: `3 1/2` is 7/2. `5 7/2` and `1.5 1/2` are two numbers, of which the second counts."""
    return whole + part if part < 1 and whole.denominator == 1 else part


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number, perhaps with a trailing `%` or period; None for any other text."""
    match = NUMBER.match(text := plain(text).strip())
    rest = text[match.end() :] if match else ""
    return value(match) if match and rest.strip() in ("", "%", ".", "%.") else None


def last_number(text: str) -> Fraction | None:
    """The last number in a text (as `plain` writes it); None without one."""
    last = None
    for last in NUMBER.finditer(text):  # noqa: B007
        pass
    return value(last) if last else None
