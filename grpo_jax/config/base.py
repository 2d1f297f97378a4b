"""Reads and writes settings: YAML, the command line, Python; one line per error.

`Settings` is the base of every tree of settings in `config/`. Nothing here knows a single setting.
"""

import re
import reprlib
from collections.abc import Collection, Mapping
from inspect import get_annotations
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from grpo_jax.config.trl_translation import translation
from grpo_jax.errors import UserError, nearest

PLAIN_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a mapping",
}


class Settings(BaseModel):
    """Frozen, typed settings. A bad value raises `UserError`, from Python as from YAML or a command line."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,  # the docstring under a field is its help text
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as fault:
            raise UserError(explain(type(self), fault, values)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(
            f"{name}: settings do not change; write replace({name}=...), which returns a changed copy"
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, all checks run again."""
        return type(self)(**{**self.model_dump(exclude_unset=True), **changes})

    def written(self) -> dict[str, Any]:
        """All settings as plain values, which can be read back."""
        return self.model_dump()

    def to_yaml(self) -> str:
        """All settings as YAML, section by section; `load_settings` reads an equal object back."""
        values = self.written()
        blocks = [
            f"# {title}\n" + yaml.safe_dump({name: values[name] for name in names}, sort_keys=False)
            for title, names in sections(type(self)).items()
        ]
        return "\n".join(blocks)


def sections(cls: type[Settings]) -> dict[str, list[str]]:
    """Title -> field names, for every section class of `cls` that declares fields, in the order of its bases.

    A section's title is the first line of its docstring. A field declared twice belongs to the outer class.
    """
    seen: set[str] = set()
    found = {}
    for section in cls.__mro__:
        names = [name for name in get_annotations(section) if name in cls.model_fields and name not in seen]
        seen.update(names)
        if names:
            found[(section.__doc__ or section.__name__).partition("\n")[0].rstrip(".")] = names
    return found


def explain(cls: type[Settings], fault: ValidationError, given: Mapping[str, Any]) -> str:
    """pydantic's report on what was `given`, a line `field = value: what it must be` for each problem."""
    return "\n".join(problem(cls, error, given) for error in fault.errors(include_url=False))


def problem(cls: type[Settings], error: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    if error["type"] == "value_error":  # raised by our own checks, which write the whole sentence
        return str(error["ctx"]["error"])
    name = str(error["loc"][0]) + "".join(f"[{part}]" for part in error["loc"][1:])
    if error["type"] == "extra_forbidden":
        return unknown(name, cls.model_fields, given)
    if error["type"] == "missing":
        return f"{name}: must be given"
    expected = in_plain_words(error["msg"])
    hint = nearest(str(error["input"]), re.findall(r"'(.*?)'", expected))
    return f"{name} = {error['input']!r}: {expected}{hint}"


def in_plain_words(message: str) -> str:
    """pydantic's `Input should be ...` as `must be ...`, without its asides."""
    text = re.sub(r"^.*? should", "must", message)
    text = re.sub(r",? (unable to|after validation|got a number|with at most).*", "", text)
    for theirs, ours in PLAIN_WORDS.items():
        text = text.replace(theirs, ours)
    return text


def unknown(name: str, known: Collection[str], given: Mapping[str, Any] | None = None) -> str:
    """The sentence for a setting that does not exist: what says the same here, or the nearest name."""
    given = given or {}
    if text := translation(name, known, given):
        value = f" = {reprlib.repr(given[name])}" if name in given else ""
        return f"{name}{value}: not a setting here; {text}"
    return f"{name}: no such setting{nearest(name, known)}"
