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

_TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
_BEFORE_OPTIONS = re.compile(r":(?=\s*[A-Za-z_]\w*\s*=)")
_TRUTH = {"true": True, "false": False}


class BoundFunction(functools.partial):
    """A function with its options, which a column of the same name cannot replace, unlike in a plain `partial`."""

    def __call__(self, /, *rows: Any, **columns: Any) -> Any:
        free = {name: column for name, column in columns.items() if name not in self.keywords}
        return super().__call__(*rows, **free)


def split_options(spec: str) -> tuple[str, str]:
    """(reward, its options as written): `a.py:f:x=1` is ("a.py:f", "x=1")."""
    reward, *options = _BEFORE_OPTIONS.split(spec, maxsplit=1)
    return reward, options[0].strip() if options else ""


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a function, by name."""
    try:
        signature = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a compiled function may have no signature
        return {}
    is_option = lambda p: p.kind is p.KEYWORD_ONLY and type(p.default) in _TYPE_WORDS
    return {name: parameter for name, parameter in signature.items() if is_option(parameter)}


def read_options(spec: str, text: str, known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The values of `name=value,name=value`.

    Raises:
        UserError: an unknown option, one given twice, or a value of another type.
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
        raise UserError(f"rewards: '{spec}': {option.name}={text} must be {_TYPE_WORDS[kind]}") from None
    choices = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
    if choices and value not in choices:
        raise UserError(
            f"rewards: '{spec}': {option.name}={text} must be one of {', '.join(map(str, choices))}"
            f"{nearest(text, choices)}"
        )
    return value
