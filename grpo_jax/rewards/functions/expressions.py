"""Arithmetic on whole numbers, evaluated exactly. No `eval`: what a model writes is never run.

    sum     = ["-"] product { ("+" | "-") product }        the sign only at the start or after "("
    product = atom { ("*" | "/") atom }
    atom    = integer | "(" sum ")"

Everything else is refused: powers, `//`, decimals, `--3`, `2*-3`, `(3)(4)`, `+3`. Length and depth are
bounded, hence so is the cost: a value has at most about `MAX_LENGTH` digits.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
"""Characters. The longest honest Countdown answer has fewer than 50."""
MAX_DEPTH = 30
"""Nested parentheses."""

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")


@dataclass(frozen=True)
class Expression:
    """An arithmetic expression: its exact value, and the integers it is written with, left to right."""

    value: Fraction
    numbers: tuple[int, ...]


def parse(text: str) -> Expression | None:
    """Read and evaluate an expression; None when it is not one, divides by zero, or passes a limit."""
    tokens = _tokens(text)
    if not tokens:
        return None
    reader = _Reader(tokens)
    try:
        value = reader.sum()
    except (_Refused, ZeroDivisionError):
        return None
    return Expression(value, tuple(reader.numbers)) if reader.next is None else None


def _tokens(text: str) -> list[str]:
    """The tokens of the whole text; empty when a character belongs to none or the text is too long."""
    text = text.strip()
    if len(text) > MAX_LENGTH:
        return []
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return []
        tokens.append(match[1])
        at = match.end()
    return tokens


class _Refused(Exception):
    """The tokens do not follow the grammar."""


class _Reader:
    """Recursive descent: one method a rule, each reads what it names and returns its value."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.numbers: list[int] = []

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str | None:
        token = self.next
        self.at += 1
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
