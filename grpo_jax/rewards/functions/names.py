"""People's names in a text: of several words, with hyphens, apostrophes or accents, in any form of Unicode."""

import re
import unicodedata
from collections.abc import Collection

LONGEST = 80
"""The most characters of a name; limits the search for its beginning."""

_WORD = r"[^\W_](?:[\w'’\u2010-]*\w)?|[A-Z]\.|(?:Mr|Mrs|Ms|Dr|St|Jr|Sr)\."
_LAST_WORDS = re.compile(rf"(?:{_WORD})(?:[ \t]+(?:{_WORD}))*$")
_PARTICLE = re.compile(r"al|bin|da|del?|della|der|di|du|la|le|ten|van|von")
_NO_NAME = re.compile(
    r"""a|after|all|also|although|and|answer|as|assume|because|both|but|finally|first|for|from|given|hence|here|however|
    i|if|in|it|its|last|next|now|only|or|second|since|so|solution|suppose|that|the|then|there|therefore|third|this|
    thus|to|what|when|where|whereas|which|while|with|yet|character|citizen|inhabitant|islander|native|person|resident|
    speaker|\w+ly|\d+""",
    re.VERBOSE | re.IGNORECASE,
)


def plain_name(name: str) -> str:
    """A name as names are compared: lower case, composed Unicode, one kind of apostrophe and of hyphen."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.sub("[‐‑–]", "-", name.replace("’", "'").replace("ʼ", "'")).split())


def name_before(text: str, end: int, people: Collection[str] = ()) -> str:
    """The name that ends there, as `plain_name` writes it: the words in capitals, but for those that begin a sentence.
    Without a capital it is the longest of `people` that ends there, or the last word. Empty if there is no word.

    Args:
        text: in composed Unicode (NFKC).
        people: names as `plain_name` writes them.
    """
    start = max(0, end - LONGEST)
    found = _LAST_WORDS.search(text[start:end])
    if found is None:
        return ""
    words = found[0].split()
    known = next(
        (name for name in (plain_name(" ".join(words[i:])) for i in range(len(words))) if name in people), ""
    )
    own = plain_name(" ".join(words[_beginning(words) :]))
    return known if len(known) > len(own) or (known and _is_lower(words[-1])) else own


def _beginning(words: list[str]) -> int:
    """Where the name begins that ends with the last of the words."""
    first = len(words) - 1
    if _is_lower(words[first]):
        return first
    for at in range(first - 1, -1, -1):
        word = words[at]
        if _NO_NAME.fullmatch(word) or (_is_lower(word) and not _PARTICLE.fullmatch(word)):
            break
        first = first if _is_lower(word) else at
    return first


def _is_lower(word: str) -> bool:
    return word[0].islower()
