r"""Recognises formulas on which math-verify would run for ever or crash: towers of powers, deep nesting, long chains.

No gold answer is like that, so such an answer is wrong. The rules only save time: a formula that they miss runs into
the deadline of `RewardPool` and gets the worst score (`verdicts.py`).
"""

import re

DEEPEST = 12
"""The deepest nesting of brackets: parsing takes exponential time in it."""

_ENDLESS = re.compile(
    r"""(?:[^/,;&\n]{0,24}/){9}                     # a chain of divisions
    | (?<!\d)\d{4,}+\s*! | !\s*[)}]\s*! | !\s*!\s*!         # factorials
    | \^[\s{(]*-?\d{6,}                             # powers
    | (?<![A-Za-z\\])[A-Za-z](?![A-Za-z])[^()]{0,40}\)\s*\^[\s{(]*\d{3,}  # of sums
    | \|{9}
    | binom\s*\{\s*\d{5,}
    | \\(?:i*int|oint|sum|prod|lim)(?![A-Za-z])     # what would be worked out
    | (?:\\l(?:floor|ceil).*){5}""",
    re.VERBOSE | re.ASCII,
)
_TOWER = re.compile(r"(\d{1,9})[\s{(]*\^[\s{(]*(\d{1,9})[\s{(]*\^[\s{(]*(\d{1,9})", re.ASCII)


def is_endless(formula: str) -> bool:
    """Whether a formula must not be parsed. Takes linear time."""
    return bool(_ENDLESS.search(formula)) or _is_deep(formula) or any(map(_is_high, _TOWER.finditer(formula)))


def without_open_formulas(text: str) -> str:
    r"""The text without unclosed `\(` and `\[`: the search for their ends would take quadratic time."""
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        end = text.rfind(closing) + len(closing) if closing in text else 0
        text = text[:end] + text[end:].replace(opening, "")
    return text


def _is_deep(formula: str) -> bool:
    depth = 0
    for sign in formula:
        depth += (sign in "([{") - (sign in ")]}" and depth > 0)
        if depth > DEEPEST:
            return True
    return False


def _is_high(tower: re.Match[str]) -> bool:
    """Whether the exponent, itself a power, is above a million."""
    base, exponent = int(tower[2]), int(tower[3])
    return base > 1 and base ** min(exponent, 20) > 10**6
