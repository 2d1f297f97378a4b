r"""Formulas on which math-verify would compute for ever, or fall over: towers of powers, deep nesting, long chains.

No gold answer is one, so an answer that is one is wrong. These rules spare time: what slips through costs its row the
deadline of `RewardPool`, and gets the worst verdict.
"""

import re

DEEPEST = 12
"""Brackets within brackets; reading takes time exponential in them."""

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
    """Whether a formula is better not read. Linear in its length."""
    return bool(_ENDLESS.search(formula)) or _is_deep(formula) or any(map(_is_high, _TOWER.finditer(formula)))


def without_open_formulas(text: str) -> str:
    r"""The text without `\(` and `\[` that nothing closes: the search for their end would be quadratic."""
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
    """Whether the exponent, itself a power, is beyond a million."""
    base, exponent = int(tower[2]), int(tower[3])
    return base > 1 and base ** min(exponent, 20) > 10**6
