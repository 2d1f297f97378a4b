"""Evaluates arithmetic on integers exactly, without running the model's text as Python.

    sum     = ["-"] product { ("+" | "-") product }        the sign only at the start or after "("
    product = atom { ("*" | "/") atom }
    atom    = integer | "(" sum ")"

Everything else is refused: powers, `//`, decimals, `--3`, `2*-3`, `(3)(4)`, `+3`. Length and depth are limited, and
with them the cost: a value has at most about `MAX_LENGTH` digits.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
"""Characters. The longest sensible Countdown answer has fewer than 50."""
MAX_DEPTH = 30
"""Nested parentheses."""

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")


@dataclass(frozen=True)
class ParsedExpression:
    """An arithmetic expression: its exact value, and the integers in it, from left to right."""

    value: Fraction
    numbers: tuple[int, ...]


def parse(text: str) -> ParsedExpression | None:
    """Parse and evaluate an expression; None if it is not one, divides by zero, or exceeds a limit."""
    tokens = _tokens(text)
    if not tokens:
        return None
    reader = _Reader(tokens)
    try:
        value = reader.sum()
    except (_Refused, ZeroDivisionError):
        return None
    return ParsedExpression(value, tuple(reader.numbers)) if reader.next is None else None


def _tokens(text: str) -> list[str]:
    """The tokens of the whole text; empty if a character belongs to none, or the text is too long."""
    text = text.strip()
    if len(text) > MAX_LENGTH:
        return []
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return []
        tokens.append(match[1])
        position = match.end()
    return tokens


class _Refused(Exception):
    """The tokens do not follow the grammar."""


class _Reader:
    """A recursive-descent parser: one method per grammar rule, which consumes its tokens and returns their value."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.numbers: list[int] = []

    @property
    def next(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str | None:
        token = self.next
        self.position += 1
        return token

    def sum(self) -> Fraction:
        negative = self.next == "-" and self.take() is not None
        value = -self.product() if negative else self.product()
        while self.next in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.product()
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while self.next in ("*", "/"):
            value = value * self.atom() if self.take() == "*" else value / self.atom()
        return value

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            return self.parenthesis()
        if token is None or not token.isdigit():
            raise _Refused
        self.numbers.append(int(token))
        return Fraction(self.numbers[-1])

    def parenthesis(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused
        value = self.sum()
        if self.take() != ")":
            raise _Refused
        self.depth -= 1
        return value
