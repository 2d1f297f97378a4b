r"""One spelling for formulas that are written in many ways: `26\,000`, `\mathrm{e}` and `**64**` as `26000`, `e`, `64`.

What a parser would silently leave out is either written so that it understands it (fonts, mixed numbers), or kept for
`formulas.py` to see (primes, dots, bases). All patterns take linear time.
"""

import re
import unicodedata
from fractions import Fraction

from grpo_jax.rewards.functions.digits import joined, joined_over_spaces
from grpo_jax.rewards.functions.numbers import parse_number

_CHARACTERS = {
    "−": "-", "–": "-", "\u2010": "-", "\u2011": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "∞": r"\infty ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "π": r"\pi ", "…": r"\ldots ", "′": "'", "’": "'", "°": r"\degree ", "º": r"\degree ", "˚": r"\degree ",
}  # fmt: skip
_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FRACTION_SIGN = re.compile("(\\d?)([¼½¾⅐-⅞])")
_DOTS = re.compile(r"(?<!\.)(?:\.{3}|\. \. \.)(?!\.)")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")

_COMMANDS = (
    (re.compile(r"\\(?:displaystyle|textstyle|limits|bigl|bigr|Bigl|Bigr)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:c|h)?dots[cbm]?(?![A-Za-z])"), r"\\ldots "),
    (re.compile(r"\\(?:lt|gt)(?![A-Za-z])"), lambda found: {"lt": "<", "gt": ">"}[found[0][1:]]),
    (re.compile(r"\*\*(?=\s*[\w({\\+-])"), "^"),
)
_BOLD = r"math(?:bf|it|sf|tt|bfit|cal)|bold(?:symbol)?|bm|pmb|symbf|symbfit|symit"
_UPRIGHT = r"text(?:bf|it|rm|sf|tt|normal|up)?|mathrm|symrm|symup|mathup|mathnormal|mbox|hbox|rm"
_OLD_FONT = re.compile(r"\{\s*\\(?:bf|rm|it|sf|tt|cal)(?![A-Za-z])\s*([^{}]*)\}")
_FONT = re.compile(rf"\\(?:{_BOLD})\s*(?:\{{([^{{}}]*)\}}|(?<=[a-z])\s([A-Za-z0-9]))")
_WHOLE_TEXT = re.compile(rf"\\(?:{_UPRIGHT})\s*\{{([^{{}}]*\d[^{{}}]*)\}}")
_SIGN = re.compile(rf"\\(?:{_UPRIGHT})\s*\{{\s*([A-Za-z]|[-+]?\d[\d.,]*)\s*\}}")

_WRAPPED = re.compile(r"(\*\*|\*|__|_|`{1,3}|\"|“|\$\$|\$)(.*?)(?:\1|”)", re.DOTALL)
_LAST_MARKS = re.compile(r"(?<!\\)(?:[\s.,;]|\\\\)+$")
_DEGREES = re.compile(
    rf"\s*(?:\^\s*\{{?\s*\\(?:circ|degree)\s*\}}?|\\degree)\s*(?:\\(?:{_UPRIGHT})\s*\{{\s*[CF]\s*\}}|[CF](?![A-Za-z]))?"
)
_TURNING = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")

_MIXED = re.compile(
    r"(?<![\d.,/^_}])(?<!\d )(\d{1,12}) ?(?:\\frac ?\{(\d{1,12})\} ?\{(\d{1,12})\}| (\d{1,12})/(\d{1,12}))(?![\d.,/])"
)
_SHORT_FRACTION = re.compile(r"\\frac ?(\d|\{\d+\}) ?(\d|\{\d+\})")
_PRIME = re.compile(r"(?<=[A-Za-z)}])\s?('+)")
_SHORT_INDEX = re.compile(r"([_^])\s?(\d+)")
_SHORT_ROOT = re.compile(r"(\\sqrt)\s?(\d)")
_EULER = re.compile(r"-?(?!1e)\d+e[-+]\d+")


def spelled(formula: str) -> str:
    """The formula without what is only appearance: fonts, spacing, emphasis, marks at its ends, groups of digits."""
    text = unmarked(_characters(joined(formula)))
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = unmarked(whole[1])
    for pattern, written in _COMMANDS:
        text = pattern.sub(written, text)
    text = joined_over_spaces(_fonts(text))
    for pattern in (_SHORT_INDEX, _SHORT_ROOT):
        text = pattern.sub(r"\1{\2}", text)
    text = _MIXED.sub(_mixed, _SHORT_FRACTION.sub(_braced, text))
    text = _DEGREES.sub(r"\\cdot\\frac{\\pi}{180}" if _TURNING.search(text) else "", text)
    text = _PRIME.sub(lambda found: "^{" + r"\prime " * len(found[1]) + "}", text)
    return unmarked(re.sub(r"\s+", " ", text))


def key(formula: str) -> str:
    """The spelling by which formulas are compared that no parser understands: without spaces, but for those between
    digits and behind a command."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", spelled(formula))
    text = re.sub(r"(?<=[_^])([A-Za-z])", r"{\1}", text)
    return re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", "\\1\u2003", text))


def unmarked(text: str) -> str:
    """The text without emphasis or quotes around the whole of it, and without `=` before or a full stop behind it."""
    before = None
    while before != text:
        before = text
        text = _LAST_MARKS.sub("", text.strip().removeprefix("=").lstrip())
        wrapped = _WRAPPED.fullmatch(text)
        if wrapped and wrapped[1] not in wrapped[2]:
            text = wrapped[2]
    return text


def number(text: str) -> Fraction | None:
    """The exact value of a formula that is one number. `2e-3` is 2e - 3 in LaTeX; `1e-3` and `2E-3` are numbers."""
    return None if _EULER.fullmatch(text) else parse_number(text)


def _characters(text: str) -> str:
    text = _DOTS.sub(r"\\ldots ", text)
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    text = _FRACTION_SIGN.sub(_fraction_sign, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: "^{" + found[0].translate(_HIGH) + "}", text)
    for sign, written in _CHARACTERS.items():
        text = text.replace(sign, written)
    return unicodedata.normalize("NFKC", text)


def _fraction_sign(found: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", found[2]).partition("⁄")
    return rf"{found[1]}\frac{{{top}}}{{{bottom}}}"


def _fonts(text: str) -> str:
    text = _OLD_FONT.sub(r"{\1}", text)
    text = _FONT.sub(lambda found: _bare(found, found[1] or found[2] or ""), text)
    return _SIGN.sub(lambda found: found[0] if _is_unit(found) else _bare(found, found[1]), text)


def _bare(found: re.Match[str], inside: str) -> str:
    """What stands in a font, kept apart from a command before it."""
    inside = inside.strip().rstrip(".,")
    apart = " " if found.string[: found.start()][-1:].isalpha() else ""
    return apart + inside if len(inside) == 1 or inside.isdigit() else f"{{{inside}}}"


def _is_unit(found: re.Match[str]) -> bool:
    """Whether a letter in upright type measures a number: in `5\\text{ m}`, not in `4\\mathrm{i}`."""
    before = found.string[: found.start()].rstrip("\\,;:~ ")[-1:]
    return found[1] in "mgshlLNJWVAKCF" and (before.isdigit() or before in "}.") and before != ""


def _braced(found: re.Match[str]) -> str:
    return r"\frac" + "".join(f"{{{part.strip('{}')}}}" for part in found.groups())


def _mixed(found: re.Match[str]) -> str:
    whole, top, bottom = found[1], found[2] or found[4], found[3] or found[5]
    if int(top) >= int(bottom):
        return found[0]
    alone = found.string.strip(" -+").startswith(found[0]) and not found.string[found.end() :].strip(" \\%")
    return rf"{whole}\frac{{{top}}}{{{bottom}}}" if alone else rf"({whole}+\frac{{{top}}}{{{bottom}}})"
