r"""The answer in a completion, found strictly (where the prompt asks for it) or flexibly (anywhere), and whether two
answers are the same. This module imports no jax.

Strict scoring reads the one place that the prompt names (`PLACES`), after the thinking. Flexible scoring reads the last
of all such places in the text; without any it takes what looks like the kind of answer: the last number, the last
formula.

Answers are the same if their keys are equal, or if a comparison finds them equal (`\frac{1}{2}` and `0.5`). A vote
counts them together, and an answer that is the same as the gold one is right.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from grpo_jax.evaluation import choices
from grpo_jax.rewards.functions.expressions import parse
from grpo_jax.rewards.functions.gsm8k import final_number, gold_number, hash_number
from grpo_jax.rewards.functions.knights import identities
from grpo_jax.rewards.functions.numbers import last_number, plain
from grpo_jax.rewards.functions.spelling import key, number
from grpo_jax.rewards.functions.text import LONGEST_BOX, last_block, last_box

Found = tuple[int, str]  # where it starts, what is inside


@dataclass(frozen=True)
class Answer:
    """An answer that was read."""

    text: str
    """As written, without the text around it."""
    key: str
    """Answers with equal keys are the same."""


# ---- places ----


def last_hash(text: str) -> Found | None:
    """The text after the last `####` on its line."""
    start = text.rfind("####")
    return None if start < 0 else (start, text[start + 4 :].partition("\n")[0])


def last_fence(text: str) -> Found | None:
    """The last closed block of code, as the reward `code` sees blocks; it starts somewhere before its last fence."""
    from grpo_jax.rewards.functions.code import fenced

    blocks = fenced(text)
    return (text.rfind("```"), blocks[-1][1]) if blocks else None


PLACES: dict[str, Callable[[str], Found | None]] = {
    "tag": lambda text: last_block(text, "answer"),
    "box": last_box,
    "hash": last_hash,
    "fence": last_fence,
}
"""Where a prompt may ask for the answer: `<answer>..</answer>`, `\\boxed{..}`, behind `####`, in a block of code."""

IN_WORDS = {
    "tag": "<answer> </answer>",
    "box": r"\boxed{}",
    "hash": "a line behind ####",
    "fence": "a block of code",
}
_WRITTEN = {"tag": "<answer>{}</answer>", "box": "\\boxed{{{}}}", "hash": "#### {}", "fence": "```\n{}\n```"}


def written(place: str, text: str) -> str:
    """A completion that consists of this answer in this place."""
    return _WRITTEN[place].format(text)


def after_thought(text: str) -> str | None:
    """The text after the last `</think>`; the whole text if there is no thinking; None if the thinking never ends."""
    _, mark, rest = text.rpartition("</think>")
    return rest if mark else None if "<think>" in text else text


# ---- kinds ----


class Kind:
    """One kind of answer. `read` turns the text in a place into an answer, `find` searches a text for one."""

    votes = True
    """Whether answers can be compared, so that a majority vote makes sense."""
    places: tuple[str, ...] = ("tag", "box", "hash")
    """Where flexible scoring looks."""

    def read(self, inside: str, place: str) -> Answer | None:
        """The answer in a place; None if the text there is not one."""
        raise NotImplementedError

    def find(self, text: str) -> Answer | None:
        """The answer in a text without any such place."""
        raise NotImplementedError

    def gold(self, value: Any) -> Answer:
        """The right answer in the data. ValueError if it is not of this kind."""
        found = self.read(str(value), "tag")
        if found is None:
            raise ValueError(f"the gold answer {str(value)[-60:]!r} is no {type(self).__name__.lower()}")
        return found

    def same(self, one: Answer, other: Answer) -> bool:
        """Whether two answers are the same."""
        return one.key == other.key

    def strict(self, text: str, place: str) -> Answer | None:
        """The answer where the prompt asks for it, after the thinking."""
        reply = after_thought(text)
        found = None if reply is None else PLACES[place](reply)
        return self.read(found[1], place) if found else None

    def flexible(self, text: str) -> Answer | None:
        """The answer anywhere: in the last place that holds one, else by its form."""
        places = [(*found, name) for name in self.places if (found := PLACES[name](text))]
        for _, inside, name in sorted(places, reverse=True):
            if answer := self.read(inside, name):
                return answer
        return self.find(text)


class Number(Kind):
    """Compared exactly, as fractions; read as the rewards `gsm8k` (flexible) and `gsm8k_strict` (behind `####`) do."""

    def read(self, inside: str, place: str) -> Answer | None:
        reply = written(place if place == "hash" else "tag", inside)
        return self._answer(hash_number(plain(reply)) if place == "hash" else final_number(reply))

    def find(self, text: str) -> Answer | None:
        return self._answer(last_number(plain(text)))

    def flexible(self, text: str) -> Answer | None:
        return self._answer(final_number(text))

    def gold(self, value: Any) -> Answer:
        return Answer(*[str(gold_number(value))] * 2)

    @staticmethod
    def _answer(number: Any) -> Answer | None:
        return None if number is None else Answer(*[str(number)] * 2)


class Math(Kind):
    r"""A formula: a number exactly, else the same once spelling is put aside, else equal for math-verify."""

    def read(self, inside: str, place: str) -> Answer | None:
        text = inside.strip().strip("$").strip()
        return Answer(text, _key(text)) if text else None

    def find(self, text: str) -> Answer | None:
        found = _last_formula(text)
        if found:
            return self.read(found.rpartition("=")[2], "box")
        number = last_number(plain(text))
        return None if number is None else Answer(*[str(number)] * 2)

    def gold(self, value: Any) -> Answer:
        from grpo_jax.rewards.functions.boxed import gold_of

        return super().gold(gold_of(value))

    def same(self, one: Answer, other: Answer) -> bool:
        if one.key == other.key:
            return True
        plainly = all(
            "%" not in a.text and (number(a.key) is not None or a.key.isalpha()) for a in (one, other)
        )
        return not plainly and _equal(one.text, other.text)


class Choice(Kind):
    """The letter of one of the options."""

    def read(self, inside: str, place: str) -> Answer | None:
        return self._answer(choices.letter(inside))

    def find(self, text: str) -> Answer | None:
        return self._answer(choices.last_letter(text))

    @staticmethod
    def _answer(letter: str | None) -> Answer | None:
        return Answer(letter, letter) if letter else None


class Expression(Kind):
    """Arithmetic, as in Countdown. Two expressions are the same if their values and their numbers are: nothing else
    decides whether they are right."""

    def read(self, inside: str, place: str) -> Answer | None:
        text, equals, claim = inside.strip().partition("=")
        found = parse(text)
        if found is None:
            return None
        claimed = parse(claim) if equals else found
        wrong_claim = "" if claimed and claimed.value == found.value else f", said to be {claim.strip()}"
        return Answer(inside.strip(), f"{found.value} of {sorted(found.numbers)}{wrong_claim}")

    def find(self, text: str) -> Answer | None:
        for sign, ours in (("×", "*"), ("\\times", "*"), ("\\cdot", "*"), ("÷", "/"), ("−", "-")):
            text = text.replace(sign, ours)
        spans = re.findall(r"[0-9(][0-9+*/() \t-]{1,200}", text)
        read = (
            self.read(_balanced(span), "tag") for span in reversed(spans) if re.search(r"[0-9] *[-+*/]", span)
        )
        return next(filter(None, read), None)


class People(Kind):
    """Who is a knight and who is a knave."""

    def read(self, inside: str, place: str) -> Answer | None:
        return self._answer(identities(inside))

    def find(self, text: str) -> Answer | None:
        """The last statement about each person, read from the end back to the first name that repeats."""
        people: dict[str, str] = {}
        for sentence in reversed(re.split(r"[\n.;,]", text)):
            stated = identities(sentence) or {}
            if stated.keys() & people.keys():
                break
            people = stated | people
        return self._answer(people or None)

    @staticmethod
    def _answer(people: dict[str, str] | None) -> Answer | None:
        """people: name -> knight or knave."""
        if not people:
            return None
        text = ", ".join(f"{name} is a {people[name]}" for name in sorted(people))
        return Answer(text, text)


class Code(Kind):
    """A program. Programs cannot be compared, so there is no vote."""

    votes, places = False, ("fence",)

    def read(self, inside: str, place: str) -> Answer | None:
        return Answer(*[inside.strip("\n")] * 2) if inside.strip() else None

    def find(self, text: str) -> Answer | None:
        return self.read(after_thought(text) or "", "fence")


class Text(Kind):
    """Text, compared without case, spacing and a final full stop."""

    def read(self, inside: str, place: str) -> Answer | None:
        key = " ".join(inside.split()).rstrip(".").casefold()
        return Answer(inside.strip(), key) if key else None

    def find(self, text: str) -> Answer | None:
        lines = [line for line in text.splitlines() if line.strip()]
        return self.read(lines[-1], "tag") if lines else None


KINDS: dict[str, Kind] = {
    "number": Number(),
    "math": Math(),
    "choice": Choice(),
    "expression": Expression(),
    "people": People(),
    "code": Code(),
    "text": Text(),
}


def elected(kind: Kind, answers: Iterable[Answer | None]) -> list[str | None]:
    """The vote of each of a problem's answers: the key of the first answer that is the same."""
    heads: list[Answer] = []
    votes: dict[str, str] = {}
    return [None if answer is None else _vote(kind, answer, heads, votes) for answer in answers]


def _vote(kind: Kind, answer: Answer, heads: list[Answer], votes: dict[str, str]) -> str:
    if answer.key not in votes:
        head = next((head for head in heads if kind.same(head, answer)), None)
        if head is None:
            heads.append(head := answer)
        votes[answer.key] = head.key
    return votes[answer.key]


def _balanced(span: str) -> str:
    """An expression without leftovers of prose at its ends: signs, spaces, unmatched parentheses."""
    span = span.strip(" \t+*/-")
    while span.count(")") > span.count("(") and span.endswith(")"):
        span = span[:-1].rstrip(" \t+*/-")
    while span.count("(") > span.count(")") and span.startswith("("):
        span = span[1:].lstrip()
    return span


# A dollar opens a formula before anything but a space, and closes it behind anything but a space, if no digit follows.
_MONEY = r"\\?\$\d[\d,]*(?:\.\d+)?"
_FORMULA = re.compile(
    rf"\$\$(.{{1,300}}?)\$\$|(?<!\\)\$(?!\s)([^$\n]{{1,300}})(?<![\s\\])\$(?!\d)|\\\((.{{1,300}}?)\\\)|{_MONEY}",
    re.DOTALL,
)


def _last_formula(text: str) -> str | None:
    """The last formula of a text; None if a sum of money comes later, or there is none."""
    last = None
    for last in _FORMULA.finditer(text):  # noqa: B007
        pass
    return next(filter(None, last.groups()), None) if last else None


def _key(formula: str) -> str:
    """The exact value of a number; else the formula in its one spelling, words without case."""
    text = key(formula) if len(formula) <= LONGEST_BOX else formula
    if (value := number(text)) is not None:
        return str(value)
    words = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text).replace(" ", "")
    return words.casefold() if words.isalpha() else re.sub(r"\\?%$", "", text)


def _equal(one: str, other: str) -> bool:
    """Whether two formulas are equal, both read as the reward `boxed_math` reads a box. The reward pool's deadline is
    the only time limit."""
    from grpo_jax.rewards.functions.boxed import formula_in
    from grpo_jax.rewards.functions.formulas import equal

    return equal(formula_in(one), formula_in(other))
