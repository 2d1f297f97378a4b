r"""Rules that find problems which cannot be trained on with a verifiable reward.

The kinds are those of SRPO (arXiv:2504.14286); the rules are ours. Each returns what it found, or None, and prefers
keeping a bad problem to losing a good one.
"""

import re
from fractions import Fraction

_START = r"(?:\A|(?<=[.!?:;,])\s+|\n\s*|(?<=\$)\s+|(?<=[)\]])\s+|(?:\band|\bthen)\s+)"
_ASKS = re.compile(
    _START
    + r"(?:please\s+)?(?:find|determine|calculate|compute|evaluate|solve|simplify|express|what|how|which|who|when|"
    r"where|write|give|state|list|estimate|count|factor|name|explain|draw|sketch|prove|show|is|are|does|do|can)\b|\?|[求证]",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"\b(?:find|determine|calculate|compute|evaluate|solve|what|how (?:many|much|long|far|old)|which)\b|\?|求",
    re.I,
)
_PROOF = re.compile(
    r"(?:\A|(?<=[.!?:;])\s+|\n\s*|(?<=[)\]])\s+)(?:please\s+)?"
    r"(?:prove|show|demonstrate|justify)\b(?:\s+that\b|\s+the\b|\s*[:,]|\s+\$)|\A.{0,200}\bprove that\b|证明",
    re.IGNORECASE | re.DOTALL,
)

_ENUMERATIONS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"(?:^|(?<=[\s.;:,?!$}]))\(\s*(?P<mark>[a-f])\s*\)(?=\s*\S)",
        r"(?:^|(?<=[\s.;:,?!$}]))\(\s*(?P<mark>i|ii|iii|iv|v)\s*\)(?=\s*\S)",
        r"(?:^|(?<=[\s.;:,?!。；]))[(（]\s*(?P<mark>[1-6])\s*[)）](?=\s*\S)",
        r"^\s*(?P<mark>[a-f])[.)]\s",
        r"^\s*(?P<mark>[1-6])[.)]\s",
        r"(?:^|(?<=[\s.;:?!]))[Pp]art (?P<mark>[A-Fa-f1-6])\s*[:.)]",
        r"(?P<mark>[①②③④⑤])",
    )
)

_PICTURE = r"(?:figure|fig\.|diagram|picture|image|illustration|drawing|sketch)"
_IMAGE = re.compile(
    r"!\[[^\]]*\]\(|<img\b|\\includegraphics|\[asy\]|\\begin\{(?:tikzpicture|asy|picture)\}|"
    r"\.(?:png|jpe?g|gif|svg|webp)\b|"
    rf"\b(?:see|refer to|consult)\s+(?:the\s+)?(?:attached\s+|following\s+|accompanying\s+)?(?:{_PICTURE}|graph|chart)|"
    # Not "the graph to the right by 3", nor "the picture above the door".
    rf"\b(?:{_PICTURE}|graph|chart)s?\s+(?:shown\s+|given\s+|provided\s+)?(?:below|above)\b(?!\s+(?:the|a|an|its|\$))|"
    rf"\b(?:{_PICTURE}|graph|chart)s?\s+(?:shown\s+)?(?:on the|at(?: the)?) (?:right|left)\b|"
    rf"\b{_PICTURE}s?\s+(?:shown\s+)?to the (?:right|left)\b|"
    rf"\b(?:accompanying|attached|adjacent|adjoining|following)\s+{_PICTURE}|"
    rf"\b(?:shown|depicted|pictured|illustrated|as|seen)\s+in\s+(?:the\s+)?(?:following\s+|above\s+)?"
    rf"(?:{_PICTURE}|graph|chart)|"
    r"\bin the (?:figure|diagram)\b|"
    r"(?:\b(?:in|see|from)\s+|\()(?:figure|fig\.?|diagram)\s*\d|\bas (?:shown|pictured|illustrated|depicted)\s*[.,:;]|"
    r"如图|下图|右图|左图|图所示",
    re.IGNORECASE,
)
_TABLE = re.compile(
    r"\\begin\{(?:tabular|table|longtable)\}|<table\b|^\s*\|?(?:\s*:?-{2,}:?\s*\|){1,}\s*:?-{2,}:?\s*\|?\s*$|"
    r"\b(?:table|chart)s?\s+(?:shown\s+|given\s+|provided\s+)?(?:below|above)\b|"
    r"\b(?:shown|given|listed|summarized)\s+in\s+(?:the\s+)?(?:following\s+)?table\b|"
    r"\bthe following table\b|\b(?:in|see|from)\s+table\s+\d|"
    r"下表|如表",
    re.IGNORECASE | re.MULTILINE,
)

_NETWORK = re.compile(
    r"\b(?:import|from)\s+(?:requests|urllib|socket|http|aiohttp|selenium|scrapy|boto3|paramiko|ftplib|smtplib)\b|"
    r"\b(?:download|scrape|crawl|fetch)(?:s|ing)?\b[^.\n]{0,40}\b(?:web|url|page|site|internet|online|api|server)|"
    r"\b(?:http|rest|web)\s+(?:api|request|server|service|socket)s?\b|\bsend(?:s|ing)? an? (?:e-?mail|http)|"
    r"\bapi[ _]key\b|\bsockets?\b.{0,30}\b(?:connect|listen|port)\b",
    re.IGNORECASE,
)
_FILES = re.compile(
    r"\b(?:read|load|open|write|save|parse|append)(?:s|ing)?\b[^.\n]{0,40}\b(?:files?|csv|spreadsheet|director(?:y|ies)|folder)\b|"
    r"\bopen\(\s*[\"']|(?<![\w-])[\w-]{1,60}\.(?:txt|csv|xlsx?|json|xml|dat|in|out)\b|\bpath to (?:a|the) file\b",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(
    r"\b(?:import|from)\s+(?:tkinter|pygame|cv2|torch|tensorflow|keras|django|flask|pyspark|sqlalchemy|PyQt\d?|matplotlib)\b|"
    r"\b(?:tkinter|pygame|opencv|django|flask|docker|kubernetes|mysql|postgres(?:ql)?|mongodb|redis|sqlite|hadoop|pyspark|"
    r"cuda|arduino|raspberry pi|android|xcode|webcam|selenium)\b|\b(?:gui|graphical user interface)\b|"
    r"\bSQL (?:query|database|server)\b",
    re.IGNORECASE,
)

_NOTHING = {
    "",
    "-",
    "?",
    "n/a",
    "na",
    "none",
    "null",
    "nan",
    "unknown",
    "proof",
    "see solution",
    "no answer",
    "证明",
}
_OR = re.compile(r"\\(?:text|mathrm|quad)\s*\{\s*(?:,?\s*(or|and)\s*)\}|\b(or|and)\b", re.IGNORECASE)
_LONGEST = 120  # characters of an answer that is looked into; longer ones are texts
_WRITING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;]|\$")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def parts(text: str) -> str | None:
    """Several questions, under (a), (b) or 1., 2. Listed statements or choices are not questions."""
    for enumeration in _ENUMERATIONS:
        marks = list(enumeration.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        asking = [m["mark"] for m, end in zip(marks, ends) if _ASKS.search(text[m.end() : end].strip())]
        if len(set(asking)) > 1:
            return f"questions {', '.join(dict.fromkeys(asking))}"
    return None


def proof(text: str) -> str | None:
    """A request for a proof, and for no value beside it."""
    found = _PROOF.search(text)
    if not found or _VALUE.search(text[: found.start()] + text[found.end() :]):
        return None
    return _around(text, found)


def image(text: str) -> str | None:
    """A reference to a picture, or a picture drawn in code."""
    return _found(_IMAGE, text)


def table(text: str) -> str | None:
    """A reference to a table, or a table in the text."""
    return _found(_TABLE, text)


def network(text: str) -> str | None:
    """A programming problem that needs the network."""
    return _found(_NETWORK, text)


def files(text: str) -> str | None:
    """A programming problem that needs files."""
    return _found(_FILES, text)


def environment(text: str) -> str | None:
    """A programming problem that needs packages or services beyond the language."""
    return _found(_ENVIRONMENT, text)


def no_answer(answer: object) -> str | None:
    """An empty answer, or a word that means there is none."""
    text = "" if answer is None else str(answer).strip()
    return f"answer {text!r}" if text.strip(" .$").casefold() in _NOTHING else None


def several_answers(answer: object) -> str | None:
    """Several answers, such as `3 or 5`, `x = 1; y = 2` or `1, 2`, but not a tuple, set, interval or list of words."""
    text = str(answer).strip().strip("$").replace("\\!", "")
    if "\n" in text or len(text) > _LONGEST:
        return None
    pieces = [piece for piece in _at_top(_OR.sub(";", text)) if piece.strip(" .,\\")]
    mathematical = all(re.search(r"\d|\\|\A\s*[a-zA-Z]\s*\Z", piece) for piece in pieces)
    return f"answer {text!r}" if len(pieces) > 1 and mathematical else None


def _at_top(text: str) -> list[str]:
    """A text split at semicolons and commas outside brackets; a comma before three digits belongs to a number."""
    pieces, depth = [""], 0
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        thousands = sign == "," and re.match(r"\d{3}(?!\d)", text[i + 1 :]) and text[i - 1 : i].isdigit()
        if depth <= 0 and (sign == ";" or (sign == "," and not thousands)):
            pieces.append("")
        else:
            pieces[-1] += sign
    return pieces


def contradiction(answer: object, boxed: str | None) -> str | None:
    """An answer that differs from the boxed answer in its own solution, both being plain numbers."""
    one, other = _number(str(answer)), _number(boxed or "")
    return None if one is None or other is None or one == other else f"answer {answer}, solution {boxed}"


def normal(answer: object) -> str:
    """One text for answers that are only written differently: 1,000 and 1000.0, \\dfrac and \\frac, spaces."""
    text = str(answer)
    number = _number(text)
    return (
        str(number)
        if number is not None
        else "".join(_WRITING.sub("", text).replace(r"\dfrac", r"\frac").split())
    )


def _number(text: str) -> Fraction | None:
    plain = text.strip().strip("$").replace("\\!", "").replace("{,}", ",").strip()
    short = len(plain) <= _LONGEST
    return Fraction(plain.replace(",", "")) if short and _NUMBER.fullmatch(plain) else None


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return _around(text, match) if match else None


def _around(text: str, match: re.Match[str]) -> str:
    """The match with some characters of context, on one line."""
    start, end = max(match.start() - 20, 0), min(match.end() + 20, len(text), match.start() + 120)
    return " ".join(text[start:end].split())
