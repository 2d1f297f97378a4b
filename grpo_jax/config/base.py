"""How settings come in and go out: YAML, the command line, Python; one clear line for each fault.

`Settings` is the base of every tree of settings in `config.py`. This file knows no setting by its meaning.
"""

import re
import reprlib
import types
import typing
from collections.abc import Collection, Mapping
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from grpo_jax.config.trl_translation import translation
from grpo_jax.errors import UserError, nearest

MAX_PROBLEMS = 3  # lines of one error message: nobody reads the fourth

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


def split_list(value: Any, info: ValidationInfo) -> Any:
    """For list fields: `a,b` or `[a, b]` as a list; anything that is no string stays as it is."""
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{info.field_name} = {value}: not a list; write a,b or [a, b]") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def split_specs(value: Any, info: ValidationInfo) -> Any:
    """As `split_list`, for names with options: in `a:x=1,y=2,b` a comma before `y=` goes on with the same name."""
    parts = split_list(value, info)
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return parts
    whole: list[str] = []
    for part in parts:
        if whole and ":" in whole[-1] and re.match(r"[A-Za-z_]\w*\s*=", part):
            whole[-1] += f",{part}"
        else:
            whole.append(part)
    return whole


def one_or_list(value: Any, info: ValidationInfo) -> Any:
    """For lists of texts in which commas and spaces count: `[a, b]` as a list, any other string as the only one."""
    if isinstance(value, str) and not value.startswith("["):
        return [value]
    return split_list(value, info)


def texts_or_ids(value: Any, info: ValidationInfo) -> Any:
    """For lists of tokens: `[text, 17]`, or one text alone. A number is an id, and in quotes a text."""
    tokens = one_or_list(value, info)
    if tokens is None:
        return None
    plain = lambda token: isinstance(token, str | int) and not isinstance(token, bool) and token != ""
    if not (isinstance(tokens, list | tuple) and all(map(plain, tokens))):
        raise ValueError(f"{info.field_name} = {value!r}: must be texts or ids; write e.g. ['<think>', 17]")
    return list(tokens)


def read_mapping(value: Any, info: ValidationInfo) -> Any:
    """For mapping fields: `{name: value}` in a string as a mapping; anything that is no string stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{info.field_name} = {value}: not a mapping; write {{name: value}}") from None


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], BeforeValidator(split_list), Field(min_length=1)]
Specs = Annotated[list[Name], BeforeValidator(split_specs), Field(min_length=1)]
Texts = Annotated[list[Name], BeforeValidator(one_or_list)]
Tokens = Annotated[list[int | str], BeforeValidator(texts_or_ids)]
Numbers = Annotated[list[float], BeforeValidator(split_list)]
Counts = Annotated[list[Positive], BeforeValidator(split_list), Field(min_length=1)]
Mapped = Annotated[dict[str, Any], BeforeValidator(read_mapping)]


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

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, checked as a whole."""
        return type(self)(**{**self.model_dump(exclude_unset=True), **changes})

    def written(self) -> dict[str, Any]:
        """All settings, in the form in which they can be read again."""
        return self.model_dump()

    def to_yaml(self) -> str:
        """All settings as YAML, section by section; `load_settings` reads an equal object back."""
        values = self.written()
        blocks = [
            f"# {title}\n" + yaml.safe_dump({name: values[name] for name in names}, sort_keys=False)
            for title, names in sections(type(self)).items()
        ]
        return "\n".join(blocks)


S = TypeVar("S", bound=Settings)


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
    """pydantic's report on what was `given` as at most three lines `field = value: what it must be`."""
    lines = [problem(cls, error, given) for error in fault.errors(include_url=False)]
    hidden = len(lines) - MAX_PROBLEMS
    return "\n".join(lines[:MAX_PROBLEMS] + ([f"... and {hidden} more"] if hidden > 0 else []))


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


def load_settings(
    cls: type[S],
    source: str | Path | None,
    overrides: Mapping[str, str] | None = None,
    *,
    tiny: bool = False,
) -> S:
    """`cls` from a recipe's name or a YAML file (None: the defaults), with command-line strings on top; `tiny`: with
    what the file says under `tiny` in between, which makes a run of minutes on a laptop of it.

    Raises `UserError`; for a value that came from a file the message begins with the file and the line.
    """
    values, places = read_source(source) if source else ({}, {})
    if "stages" in values:
        raise UserError(f"{source}: a pipeline of several stages; run it with grpo-jax pipeline {source}")
    values.pop("recipe", None)  # what the recipe says about itself is no setting
    small, line = values.pop("tiny", None), places.pop("tiny", f"{source}: ")
    if tiny:
        if not isinstance(small, dict):
            raise UserError(f"--tiny: {source or 'no recipe'} has no mapping `tiny`; leave the option out")
        values, places = values | small, places | dict.fromkeys(small, f"{line}tiny: ")
    given = {name: from_text(cls, name, text) for name, text in (overrides or {}).items()}
    places = {name: place for name, place in places.items() if name not in given}
    try:
        return cls(**{**values, **given})
    except UserError as fault:
        raise UserError("\n".join(placed(line, places) for line in str(fault).splitlines())) from None


def placed(line: str, places: Mapping[str, str]) -> str:
    """`line` with the file and line of the setting that it begins with, where that is known."""
    return places.get(line.replace("[", " ").replace(":", " ").split(" ")[0], "") + line


def from_text(cls: type[Settings], name: str, text: str) -> Any:
    """A command-line string: `none` empties an optional field, the rest is left to the field's type."""
    field = cls.model_fields.get(name)
    optional = field is not None and types.NoneType in typing.get_args(field.annotation)
    return None if optional and text.lower() in ("none", "null") else text


def read_source(source: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a recipe or YAML file, and `FILE.yaml:LINE: ` for each of them."""
    from grpo_jax import recipes

    name = str(source)
    if not name.endswith((".yaml", ".yml")):
        if Path(name).exists():
            raise UserError(f"{name}: not a recipe or a .yaml file; give e.g. {name}/config.yaml")
        return parse_yaml(recipes.read(name), f"recipe {name}")
    return parse_yaml(read_file(name), name)


def read_file(name: str) -> str:
    """The text of a local or cloud (`gs://`) file."""
    from etils import epath

    try:
        return epath.Path(name).read_text()
    except (OSError, UnicodeDecodeError) as fault:
        why = "not found" if isinstance(fault, FileNotFoundError) else f"cannot be read ({fault})"
        raise UserError(f"{name}: {why}; give a recipe's name or a YAML file") from None


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML mapping and each key's place. A key given twice is refused: YAML keeps the last."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as fault:  # ValueError: a date that is none, such as 2020-13-45
        mark = getattr(fault, "problem_mark", None)
        why = getattr(fault, "problem", None) or "not YAML"
        raise UserError(f"{name}{f':{mark.line + 1}' if mark else ''}: {why}; mend the YAML there") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:{node.start_mark.line + 1}: settings are lines of `name: value`")
    _check_once(node, name, set())
    places = {str(key.value): f"{name}:{key.start_mark.line + 1}: " for key, _ in node.value}
    return {str(key): value for key, value in values.items()}, places


def _check_once(node: yaml.Node, name: str, seen: set[int]) -> None:
    """UserError for a key that a mapping has twice, however deep; `seen`: an anchor may stand inside itself."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _check_once(one, name, seen)
        return
    keys: set[str] = set()
    for key, value in node.value:
        if str(key.value) in keys:
            raise UserError(f"{name}:{key.start_mark.line + 1}: {key.value} is given twice; keep one")
        keys.add(str(key.value))
        _check_once(value, name, seen)
