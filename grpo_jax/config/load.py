"""Loads settings from a recipe or a YAML file, overridden by the command line."""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from grpo_jax.config.base import Settings
from grpo_jax.errors import UserError

S = TypeVar("S", bound=Settings)


def load_settings(
    cls: type[S],
    source: str | Path | None,
    overrides: Mapping[str, str] | None = None,
    *,
    tiny: bool = False,
) -> S:
    """`cls` from a recipe's name or a YAML file (None: the defaults), overridden by command-line strings. `tiny`
    first applies the file's section `tiny`, which makes it a run of minutes on a laptop.

    Raises `UserError`; for a value that came from a file the message begins with the file and the line.
    """
    values, places = read_source(source) if source else ({}, {})
    if "stages" in values:
        raise UserError(f"{source}: a pipeline of several stages; run it with grpo-jax pipeline {source}")
    values.pop("recipe", None)  # the recipe's description is not a setting
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
    """`line` preceded by the file and line of the setting that it begins with, if known."""
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
    except (yaml.YAMLError, ValueError) as fault:  # ValueError: an invalid date such as 2020-13-45
        mark = getattr(fault, "problem_mark", None)
        why = getattr(fault, "problem", None) or "not YAML"
        raise UserError(f"{name}{f':{mark.line + 1}' if mark else ''}: {why}; fix the YAML there") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:{node.start_mark.line + 1}: settings are lines of `name: value`")
    _check_once(node, name, set())
    places = {str(key.value): f"{name}:{key.start_mark.line + 1}: " for key, _ in node.value}
    return {str(key): value for key, value in values.items()}, places


def _check_once(node: yaml.Node, name: str, seen: set[int]) -> None:
    """UserError for a key that a mapping has twice, however deep; `seen` stops at anchors that contain themselves."""
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
