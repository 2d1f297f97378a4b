r"""Formulas read to their end, and whether two of them are equal.

math-verify decides, on formulas that `spelling.py` has written so that nothing of them is left out. What it cannot read
as a whole (`2, 4, \ldots, 2n`) is compared by its spelling; a number in a base (`43_6`) only with one in that base.
There is no time limit here: `RewardPool` has one.
"""

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import verify
from sympy import Basic, Float, Interval, MatrixBase, Rational, Set, Tuple, UnevaluatedExpr
from sympy.core.relational import Relational

from grpo_jax.rewards.functions.accuracy import attempted
from grpo_jax.rewards.functions.endless import is_endless
from grpo_jax.rewards.functions.spelling import key, number, spelled
from grpo_jax.rewards.functions.text import LONGEST_BOX
from grpo_jax.rewards.functions.units import without_unit

_STYLE = NormalizationConfig(units=False, malformed_operators=True, nits=True)
_PRECISION = 60
"""Digits. math-verify takes what is smaller than 10^-15 for nothing, unless it is told to compute with more."""
_EQUAL = 1e-9
_CLOSE = 1.001e-6
"""A decimal may stand for a number that it differs from by this share: `0.333333` for a third."""

_HIDDEN = re.compile(
    r"""\d\s+\d                       # two numbers, which math-verify would add
    | [\d)]\s*_                       # an index at a number, which it would leave out
    | \\l?dots | \.\.                 # dots, too
    | \\(?:overset|underset|stackrel|text\{[^{}]*\d)""",
    re.VERBOSE,
)
_E_NOTATION = re.compile(r"(-?\d+\.\d+|-?1|-?\d+(?=E|e\d))[eE]([-+]?\d{1,3})")
_BASES = {
    "two": 2, "binary": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "octal": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "hex": 16, "hexadecimal": 16,
}  # fmt: skip
_BASE = r"(\d{1,2}|[a-z]{3,11})"
_NUMERAL = re.compile(
    rf"""\(?\s*(?P<digits>-?[0-9a-zA-Z]+(?:\.[0-9a-zA-Z]+)?)\s*\)?\s*
    (?: _ \s* [{{(\s]* (?:\\text\{{)? [\s(]* (?:base\s*)? \}}? \s* {_BASE.replace("(", "(?P<index>", 1)} \s* [)}}\s]*
      | (?:\\text\{{)? \s* [(,]? \s* (?:in\s+)? base \s* [-~{{}}]* {_BASE.replace("(", "(?P<word>", 1)} [)}}\s]* )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Formula:
    """A formula that was read."""

    text: str
    """As it is compared by its spelling."""
    value: Any = None
    """As sympy has it; None if it is not understood to its end."""
    numeral: tuple[str, int] | None = None
    """The digits and the base, for a number in another base than ten."""

    def __str__(self) -> str:
        try:
            return self.text if self.value is None else str(self.value)
        except ValueError:  # Python does not convert integers of more than 4300 digits to text
            return "[too long to show]"


@lru_cache(maxsize=256)  # a group's completions share the gold answer, and often their own
def read_formula(formula: str) -> Formula:
    """Read a formula, as an answer or as gold. What would take too long to parse is not (`endless.py`)."""
    if len(formula) > LONGEST_BOX:
        return Formula(formula)
    text = spelled(formula)
    numeral = _numeral(text)
    if numeral and numeral[1] != 10:
        return Formula(key(formula), numeral=numeral)
    text = numeral[0] if numeral else text
    text = without_unit(text)
    if len(text) > LONGEST_BOX or is_endless(formula) or is_endless(text) or _HIDDEN.search(text) or not text:
        return Formula(key(text))
    return Formula(key(text), attempted(lambda: _parsed(text), None))


def equal(gold: Formula, answer: Formula) -> bool:
    """Whether an answer means the same as the gold one. The order matters: math-verify's results differ with it."""
    if gold.numeral or answer.numeral:
        return gold.numeral == answer.numeral
    if gold.text and gold.text == answer.text:
        return True
    if gold.value is None or answer.value is None:
        return False
    one, other = (None if "%" in formula.text else number(formula.text) for formula in (gold, answer))
    if one is not None and other is not None and not _is_rounded(one, other):
        return one == other
    return attempted(lambda: _verified(gold.value, answer.value), False)


def _numeral(text: str) -> tuple[str, int] | None:
    found = _NUMERAL.fullmatch(text)
    name = found and (found["index"] or found["word"])
    base = _BASES.get(name, 0) if name and not name.isdigit() else int(name or 0)
    if not found or not 2 <= base <= 36:
        return None
    digits = found["digits"].upper()
    known = all(digit in "-." or int(digit, 36) < base for digit in digits)
    return (digits.lstrip("0") or "0", base) if known and any(map(str.isdigit, digits)) else None


def _parsed(text: str) -> Any:
    text = _E_NOTATION.sub(r"\1\\cdot 10^{\2}", text) if _E_NOTATION.fullmatch(text) else text
    latex = normalize_latex(text, _STYLE)
    try:
        return _sympy(latex)
    except Exception:
        *chain, last = re.split(r"(?<![\\<!>])=", latex)
        if len(chain) < 2 or "," in latex or ";" in latex:
            raise
        return _sympy(last)


def _sympy(latex: str) -> Any:
    complex_too = re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\(?:imath|det|Re|Im|arg|mathbb\{C\})", latex)
    return latex2sympy(latex, is_real=not complex_too, normalization_config=None)


def _verified(gold: Any, answer: Any) -> bool:
    """Equal exactly; or, where decimals occur, equal for math-verify and close in every number."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    same = lambda one, other: verify([one], [other], numeric_precision=_PRECISION, timeout_seconds=None)
    exact = _exact(gold), _exact(answer)
    plain = [each.doit() for each in exact if isinstance(each, Basic) and not each.has(UnevaluatedExpr)]
    if len(plain) == 2 and all(isinstance(each, Rational) for each in plain):
        return bool(plain[0] == plain[1]) or (_has_decimals(gold, answer) and _close(gold, answer, _CLOSE))
    if same(*exact) and _close(*exact, _EQUAL):
        return True
    return _has_decimals(gold, answer) and bool(same(gold, answer)) and _close(gold, answer, _CLOSE)


def _has_decimals(*values: Any) -> bool:
    return any(isinstance(value, Basic | MatrixBase) and bool(value.atoms(Float)) for value in values)


def _exact(value: Any) -> Any:
    """Decimals as fractions."""
    found = value.atoms(Float) if isinstance(value, Set | Tuple | MatrixBase | Basic) else ()
    return value.xreplace({one: Rational(str(one)) for one in found}) if found else value


def _close(gold: Any, answer: Any, share: float) -> bool:
    """Whether the numbers in two values differ by a small share of them. What is below 10^-110 may be rounding of 0."""
    pairs = [
        (abs(one - other), max(abs(one), abs(other))) for one, other in zip(_numbers(gold), _numbers(answer))
    ]
    return all(apart <= share * size or size < 1e-110 for apart, size in pairs)


def _numbers(value: Any) -> list[complex]:
    """The numbers that a value consists of, in order; none of an expression with variables."""
    parts: Any = (value,)
    if isinstance(value, Interval):
        parts = value.start, value.end
    elif isinstance(value, Set | Tuple | Relational):
        parts = value.args
    elif isinstance(value, MatrixBase):
        parts = tuple(value)
    numbers = [complex(part.doit()) for part in parts if getattr(part, "is_number", False) and part.is_finite]
    return sorted(numbers, key=lambda number: (number.real, number.imag))


def _is_rounded(gold: Fraction, answer: Fraction) -> bool:
    """Whether one number may be the other one rounded: `0.333333` is a third, `0.25` is no quarter rounded."""
    endless = [10**64 % each.denominator != 0 for each in (gold, answer)]
    return endless[0] != endless[1] and abs(gold - answer) <= Fraction(_CLOSE) * max(abs(gold), abs(answer))
