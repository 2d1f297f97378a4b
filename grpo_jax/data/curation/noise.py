"""Strips from a problem's text what does not belong to it: links, markup, contest labels, numbering. Drops no row."""

import functools
import html
import re
from collections.abc import Callable

_URL = r"(?:https?://|www\.)[^\s<>()\[\]{}\"']+[^\s<>()\[\]{}\"'.,;:!?]"
_ATTRIBUTES = r"""(?:\s+[\w-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s<>"']+))*\s*"""
_TAGS = r"br|hr|div|span|strong|em|font|center|ul|ol|li|h[1-6]|pre|blockquote|table|tbody|tr|td|th"
_CONTEST = (
    r"AMC|AIME|AHSME|USAMO|IMO|HMMT|Putnam|Olympiad|Competition|Contest|Championship|Tournament|Cup|League|"
    r"Examination|Exam|Shortlist|Problem|Question"
)

Change = str | Callable[[re.Match[str]], str]
Rule = Callable[[str], str]


def _rule(pattern: str, change: Change, flags: int = re.IGNORECASE) -> Rule:
    """A function that replaces what a pattern matches. Patterns have bounded repeats, so they take linear time."""
    return functools.partial(re.compile(pattern, flags).sub, change)


def _trimmed(text: str) -> str:
    """The text without trailing spaces and without runs of empty lines."""
    lines = [line.rstrip(" \t") for line in text.strip().split("\n")]
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1])


STRIPPED: dict[str, list[Rule]] = {
    "invisible": [
        _rule("[\u00ad\u200b-\u200f\u2060\ufeff\x00-\x08\x0b\x0c\x0e-\x1f]", ""),
        _rule("\r\n?", "\n"),
        _rule("[\u00a0\u2007\u202f]", " "),
    ],
    "link": [
        _rule(r"(?<!!)\[([^\[\]]*)\]\(\s*" + _URL + r"\s*\)", r"\1"),
        _rule(r"[ \t]{0,4}[(<\[]\s{0,4}" + _URL + r"\s{0,4}[)>\]]", ""),
        # Not the address of an image, for which `faults.image` drops the row.
        _rule(r"(?<!\]\()" + _URL, ""),
    ],
    "markup": [
        _rule(r"<sup>([^<>]*)</sup>", r"^{\1}"),
        _rule(r"<sub>([^<>]*)</sub>", r"_{\1}"),
        # One-letter tags only in pairs: `a <b> c` may be a chain of comparisons.
        _rule(rf"<([biupas]){_ATTRIBUTES}>(.{{0,1000}}?)</\1>", r"\2", re.IGNORECASE | re.DOTALL),
        _rule(rf"<(?:br|/div|/li|/tr|/h[1-6]){_ATTRIBUTES}/?>", "\n"),
        _rule(rf"</?(?:{_TAGS}){_ATTRIBUTES}/?>", ""),
        _rule(
            r"&(?:nbsp|amp|lt|gt|quot|apos|times|divide|le|ge|deg|pi|minus|#\d{1,6}|#x[0-9a-f]{1,5});",
            lambda match: html.unescape(match.group()).replace("\u00a0", " "),
        ),
    ],
    "label": [
        _rule(
            rf"[ \t]{{0,4}}[(\[【](?:19|20)\d\d\b[^()\[\]【】]{{0,80}}\b(?:{_CONTEST})\b[^()\[\]【】]{{0,60}}[)\]】]",
            "",
        ),
        _rule(
            rf"[ \t]{{0,4}}[(\[【][^()\[\]【】]{{0,60}}\b(?:{_CONTEST})\b[^()\[\]【】]{{0,60}}\b(?:19|20)\d\d[)\]】]",
            "",
        ),
        _rule(r"\A\s*[(\[]\s*\d+\s*(?:points?|pts\.?|marks?|分)\s*\.?\s*[)\]]", ""),
        _rule(r"[(\[]\s*\d+\s*(?:points?|pts\.?|marks?|分)\s*\.?\s*[)\]]\s*\Z", ""),
        _rule(
            r"^.*\btranslate the (?:above |following )?text into English\b.*$",
            "",
            re.IGNORECASE | re.MULTILINE,
        ),
    ],
    "numbering": [
        _rule(
            r"\A\s*(?:problem|exercise|example|question|task)\s*(?:[№#]\s*)?(?:\d{1,4}|[A-Z])(?:[.-]\d+)*\s*[.:)]\s*",
            "",
        ),
        _rule(r"\A\s*[【\[](?:problem|exercise|example|question|task)\s*\d{1,4}[】\]]\s*", ""),
        _rule(r"\A\s*(?:№\s*)?\d{1,4}(?:\.\d{1,3})*[.)]\s+(?=[A-Z$\\(\u4e00-\u9fff])", "", 0),
    ],
    "spaces": [_trimmed],
}
"""Kind of noise -> the rules that strip it, in this order."""

IN_CODE = ("invisible",)
"""The kinds that are stripped from programming problems, in which links, markup and spaces may matter."""


def stripped(text: str, *, code: bool = False) -> tuple[str, list[str]]:
    """The text without noise, and the kinds of noise that it had."""
    found = []
    for kind, rules in STRIPPED.items():
        before = text
        for strip in rules if not code or kind in IN_CODE else ():
            # Repeated for nested markup. It ends, because a replacement is never noise of the same kind.
            while (rest := strip(text)) != text:
                text = rest
        if text != before:
            found.append(kind)
    return text, found
