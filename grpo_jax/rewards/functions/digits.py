r"""Digits that are written apart: `26\,000`, `26'000`, `26{,}000`, and spaces of every width. All patterns take linear
time."""

import re

# `\\ ` begins a row of a matrix and is no space.
_NO_WIDTH = re.compile(r"(?<!\\)\\!|\\negthinspace(?![A-Za-z])|[\u200b\u200c\u200d\u2060\ufeff]")
_THIN = re.compile(
    r"(?<!\\)\\[,;: ]|\\(?:thin|med|thick|en)space(?![A-Za-z])"
    r"|\\hspace\*?\{[^{}]{0,20}\}|~|[\u00a0\u2002-\u200a\u202f\u205f]"
)
_WIDE = re.compile(r"\\q?quad(?![A-Za-z])")
_THIN_SIGN = "\u2009"

_LAKHS = re.compile(r"(?<![\w.,])\d{1,2}(?:\{,\}\d{2})+\{,\}\d{3}(?!\d)")
_APART = re.compile(r"(?<![\w.,])(?<!\{,\})\d{1,3}(?:(?:'|’|\\?_|\{,\}|\u2009)\d{3})+(?!\d)")
_DECIMALS_APART = re.compile(r"\.\d{3}(?:\u2009\d{3})*\u2009\d{1,3}(?!\d)")
_SPACED = re.compile(r"(?<![\w.,])(?<!\d )\d{1,3}(?: \d{3})+(?![\d/]| \d)")
_SEPARATOR = re.compile(r"'|’|\\?_|\{,\}|\s")


def joined(text: str) -> str:
    """The text with such groups of three digits joined, and with other spacing written as plain spaces."""
    text = _WIDE.sub("  ", _THIN.sub(_THIN_SIGN, _NO_WIDTH.sub("", text)))
    for pattern in (_LAKHS, _APART, _DECIMALS_APART):
        text = pattern.sub(_without_separators, text)
    return text.replace(_THIN_SIGN, " ")


def joined_over_spaces(text: str) -> str:
    """The text with `26 000` joined as well, which in prose may be two numbers."""
    return _SPACED.sub(_without_separators, text)


def _without_separators(found: re.Match[str]) -> str:
    return _SEPARATOR.sub("", found[0])
