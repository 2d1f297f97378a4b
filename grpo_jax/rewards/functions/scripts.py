r"""Splits a text into words and names the script of each, for `language.py` and `repetition`.

A word is a run of letters of one script; in scripts without spaces between words (Chinese, Japanese, Thai, ..) each
letter is a word. Skipped are numbers, programs between backticks, LaTeX (`$..$`, `\(..\)`, `\[..\]`, `\name{..}`), tags
and links. Everything takes linear time: what is opened but never closed is kept.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator

CJK = "cjk"
_WITHOUT_SPACES = frozenset({CJK, "thai", "lao", "khmer", "myanmar", "tibetan"})
_ONE_NAME = {"hiragana": CJK, "katakana": CJK, "bopomofo": CJK, "katakana-hiragana": CJK, "ideographic": CJK}

_PAIRS = (("```", "```"), ("`", "`"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
_ONE_LINE = re.compile(
    r"""\$[^$\n]*\$ | \\[A-Za-z]+\*?(?:\{[^{}]*\})? | https?://\S+ | <[^<>\n]{1,40}>""", re.VERBOSE
)
_LETTERS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> Iterator[tuple[str, str]]:
    """(word, script) in order. The script is Unicode's name in lower case; `cjk` for Han and kana."""
    for run in _LETTERS.findall(_prose(text)):
        for script, letters in itertools.groupby(run, _script_within):
            if script in _WITHOUT_SPACES:
                yield from ((letter, script) for letter in letters)
            elif word := "".join(letters).strip("'’"):
                yield word, script


def _prose(text: str) -> str:
    """The text with a space in place of what is not prose, and plain letters in place of wide and bold ones."""
    for opening, closing in _PAIRS:
        text = _cut(text, opening, closing)
    text = _ONE_LINE.sub(" ", text)
    if text.isascii():
        return text
    # `re` does not count vowel signs as letters, so they would split words.
    return "".join(c for c in unicodedata.normalize("NFKC", text) if not _is_mark(c))


def _cut(text: str, opening: str, closing: str) -> str:
    """The text without all `opening` .. `closing`."""
    kept, position = [], 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[position:start])
        position = end + len(closing)
    return " ".join([*kept, text[position:]])


def _script_within(letter: str) -> str:
    return "latin" if letter.isascii() or letter == "’" else script_of(letter)


@functools.lru_cache(maxsize=2**16)
def script_of(letter: str) -> str:
    """The script of a letter: the first word of its name in Unicode, such as `latin` or `cyrillic`."""
    name = unicodedata.name(letter, "unknown").partition(" ")[0].lower()
    return _ONE_NAME.get(name, name)


@functools.lru_cache(maxsize=2**16)
def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
