"""The letter of the option that a text chooses. `I` and `A` are words as well, and options that are ruled out are named
too: `Neither (A) nor (D)`. This module imports no jax."""

import re

_FONT = re.compile(
    r"\\(?:text|math)(?:bf|rm|it|sf|tt)?\s*|\\boxed|[{}*$`]|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w)"
)
_SPACE = re.compile(r"\s+")
_ALONE = re.compile(r"\(?([A-Ja-j])(?:[).:,]|\s*$|\s*\n)")
_BRACKETED = re.compile(r"\(([A-Ja-j])\)")

_LETTER = (
    r"\(?\[?([A-J])(?![\w'’])(?!\s+(?!is\b|because\b|since\b|as\b|and\b|but\b|for\b|here\b|by\b)[a-z])\)?"
)
_LETTER_OF_NO_WORD = r"\(?\[?([B-HJ])(?![\w'’])\)?"
_OPTION = r"(?:(?:the\s+)?(?:option|choice|answer|letter|statement)\s+)?"
_VERBS = (
    r"choos\w+|chose|pick(?:ed)?|select(?:ed)?|tak(?:e|ing)|go(?:ing)?\s+(?:with|for)|prefer|answer(?:ing)?"
)
_ANNOUNCED = re.compile(
    rf"""(?i:\b(?:answer|solution|choice|option))\s*(?i:(?:must|should|would|will|to\s+be|has\s+to)\s+)?(?i:is|be)?
      \s*[:=]?\s*(?i:{_OPTION}){_LETTER}
    | (?i:\b(?<!not\s)(?<!n't\s)(?:{_VERBS}))\s+(?i:{_OPTION})(?:{_LETTER}|{_LETTER_OF_NO_WORD})
    | \(?\b([A-J])\)?\s+(?i:is|must\s+be|seems)\s+(?i:(?:clearly|the|most)\s+)*(?i:correct|right|best|true|answer)""",
    re.VERBOSE,
)
_NAMED = re.compile(r"(?i:\b(?:option|choice)\s+)([A-J])\b|\(([A-J])\)")
_LAST = re.compile(r"\b([A-J])\W*$")
_RULED_OUT_BEFORE = re.compile(
    r"(?i:\b(?:not|nor|neither|n't|eliminates?d?|excludes?d?|except|unlike|rejects?|wrong|ruled?\s+out|trap|than)\b[^.;:!?]{0,40})$"
)
_RULED_OUT_BEHIND = re.compile(
    r"(?i:\W{0,3}\s*(?:is|was|would\s+be|are|seems|looks|can)\s*(?:n[o']t|wrong|false|incorrect|a\s+trap|impossible|out|bad)|\W{0,3}\s*"
    r"(?:breaks|fails|violates|contradicts|cannot|can't))"
)


def letter(inside: str) -> str | None:
    """The letter that the content of a place gives as the answer; None if it gives none, or several."""
    text = _plain(inside).strip()
    # By itself a letter has nothing but a sign behind it.
    if alone := _ALONE.match(text):
        return alone[1].upper()
    if announced := _last_announced(text):
        return announced
    found = {one.upper() for one in _BRACKETED.findall(text)}
    found |= {one[0] for one in _NAMED.findall(text) if one[0]}
    return found.pop() if len(found) == 1 else None


def last_letter(text: str) -> str | None:
    """The letter that a text announces as its answer; else the last option that it names and does not rule out, else a
    letter at its end."""
    text = _plain(text)
    if announced := _last_announced(text):
        return announced
    named = [found for found in _NAMED.finditer(text) if not _is_ruled_out(text, found)]
    if named:
        return named[-1][1] or named[-1][2]
    last = _LAST.search(text[-40:])
    return last[1] if last else None


def _plain(text: str) -> str:
    """The text without fonts and emphasis, and with single spaces and line breaks, so that all patterns are linear."""
    return _SPACE.sub(lambda found: "\n" if "\n" in found[0] else " ", _FONT.sub("", text))


def _last_announced(text: str) -> str | None:
    """The last letter behind "the answer is", "I choose" and the like that the text does not rule out."""
    found = [one for one in _ANNOUNCED.finditer(text) if not _is_ruled_out(text, one)]
    return next(filter(None, found[-1].groups())) if found else None


def _is_ruled_out(text: str, found: re.Match[str]) -> bool:
    before = text[max(0, found.start() - 60) : found.start()]
    return bool(_RULED_OUT_BEFORE.search(before) or _RULED_OUT_BEHIND.match(text, found.end()))
