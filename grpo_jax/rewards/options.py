"""Options in a reward's name: `boxed_math:think=false`, `my_rewards.py:exact:digits=3,strict=true`.

An option of a function is a keyword-only parameter whose default is a number, `True`, `False` or a text:

    def exact(prompts, completions, answer, *, digits: int = 2, strict: bool = False, **columns): ...

Parameters of any other kind are columns of the dataset.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from grpo_jax.errors import UserError, nearest

_WHAT_A_VALUE_IS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
_BEFORE_OPTIONS = re.compile(r":(?=\s*[A-Za-z_]\w*\s*=)")
_TRUTH = {"true": True, "false": False}


class Bound(functools.partial):
    """A function with its options. Unlike a plain `partial`'s, they are not replaced by columns of the same name."""

    def __call__(self, /, *rows: Any, **columns: Any) -> Any:
        free = {name: column for name, column in columns.items() if name not in self.keywords}
        return super().__call__(*rows, **free)


def split_options(spec: str) -> tuple[str, str]:
    """(what is meant, its options as they are written): `a.py:f:x=1` is ("a.py:f", "x=1")."""
    what, *options = _BEFORE_OPTIONS.split(spec, maxsplit=1)
    return what, options[0].strip() if options else ""


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options that a function has, by name."""
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled functions need not tell
        return {}
    plain = lambda p: p.kind is p.KEYWORD_ONLY and type(p.default) in _WHAT_A_VALUE_IS
    return {name: parameter for name, parameter in found.items() if plain(parameter)}


def read_options(spec: str, text: str, known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The values of `name=value,name=value`.

    Raises:
        UserError: no such option (with those that there are), one given twice, a value of another type.
    """
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in known:
            raise UserError(f"rewards: '{spec}': {_unknown(part if not equals else name, known)}")
        if name in values:
            raise UserError(f"rewards: '{spec}': {name} is given twice; keep one")
        values[name] = _value(spec, known[name], value)
    return values


def _unknown(name: str, known: Mapping[str, inspect.Parameter]) -> str:
    if not known:
        return f"'{name}': this reward has no options; leave it out"
    written = ", ".join(f"{p.name}={_shown(p.default)}" for p in known.values())
    return f"no option '{name}'{nearest(name, known)}; it has {written}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(spec: str, option: inspect.Parameter, text: str) -> Any:
    kind = type(option.default)
    try:
        value = _TRUTH[text.lower()] if kind is bool else kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError):
        raise UserError(f"rewards: '{spec}': {option.name}={text} must be {_WHAT_A_VALUE_IS[kind]}") from None
    choices = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
    if choices and value not in choices:
        raise UserError(
            f"rewards: '{spec}': {option.name}={text} must be one of {', '.join(map(str, choices))}"
            f"{nearest(text, choices)}"
        )
    return value
