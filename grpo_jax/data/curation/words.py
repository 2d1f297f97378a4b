"""Splits texts into words, so that case, punctuation and line breaks make no difference."""

import re
import unicodedata
from collections.abc import Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Chinese and Japanese have no spaces between words, so each character counts as a word.
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """The words and numbers of a text, case-folded and in Unicode normal form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: Sequence[str], n: int) -> list[str]:
    """All n-grams of words, in order, each as one string."""
    return [" ".join(text[i : i + n]) for i in range(len(text) - n + 1)]
