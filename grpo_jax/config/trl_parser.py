"""`TrlParser`: settings and a script's own dataclasses from one command line and one YAML file."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import yaml

from grpo_jax.config.base import Settings, unknown
from grpo_jax.config.load import from_text, parse_yaml, placed, read_file
from grpo_jax.config.trl_fields import RULES
from grpo_jax.errors import UserError

TWICE = (
    ("model", ("model_name_or_path",)),
    ("dataset", ("dataset_name",)),
    ("base_weights", ("load_in_4bit", "load_in_8bit")),
    ("attention", ("attn_implementation",)),
)
"""Our settings, and TRL's arguments for the same thing."""


class TrlParser:
    """Reads objects of several classes from the command line: our settings, and any dataclasses.

    `--config FILE.yaml` gives values that the command line overrides; its mapping `env` sets environment variables. A
    name that a dataclass has is the dataclass's; the settings get the rest. `parser` is transformers'
    `HfArgumentParser`, with options of the settings added.

    Args:
        dataclass_types: one class or several.
        options: of argparse's parser.
    """

    def __init__(self, dataclass_types: type | Iterable[type] | None = None, **options: Any):
        from transformers import HfArgumentParser  # it takes a second to import

        given = [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types or ())
        self.types: list[Any] = given
        plain = [each for each in given if not _is_settings(each)]
        self.parser = HfArgumentParser(plain, **{"allow_abbrev": False, **options})
        self._dataclass_names = {
            field.name for each in plain for field in dataclasses.fields(each) if field.init
        }
        self._settings: list[type[Settings]] = [each for each in given if _is_settings(each)]
        self._settings_names = self._add_settings()

    def parse_args_and_config(
        self,
        args: Sequence[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
    ) -> tuple[Any, ...]:
        """One object of each class, in their order; then, if asked for, the words that none of them knows.

        What is wrong is said in a line, and the script ends with exit code 2.
        """
        words = list(sys.argv[1:] if args is None else args)
        try:
            values, places = self._config(words)
            strange = [name for name in values if name not in self._dataclass_names | self._settings_names]
            self.parser.set_defaults(**{name: values[name] for name in values.keys() & self._dataclass_names})
            self._require_less(values)
            namespace, rest = self.parser.parse_known_args(words)
            if not return_remaining_strings:
                self._refuse(rest, {} if fail_with_unknown_args is False else dict.fromkeys(strange), places)
            self._refuse_twice(words, values)
            made = self._objects(namespace, values, places)
        except UserError as fault:
            self._end(fault)
        left = [word for name in strange for word in (f"--{name}", str(values[name]))]
        return (*made, left + rest) if return_remaining_strings else tuple(made)

    def _end(self, fault: UserError) -> NoReturn:
        print(f"{self.parser.prog}: {fault}", file=sys.stderr, flush=True)
        raise SystemExit(2)

    def _add_settings(self) -> set[str]:
        """Options for the settings, and for the names of TRL that they accept or refuse."""
        texts = {
            name: field.description for each in self._settings for name, field in each.model_fields.items()
        }
        texts |= {name: None for name in RULES if self._settings and name not in texts}
        group = self.parser.add_argument_group("settings")
        for name in texts.keys() - self._dataclass_names:
            text = (texts[name] or "").replace("%", "%%") or argparse.SUPPRESS
            flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            group.add_argument(*flags, dest=name, nargs="*", default=argparse.SUPPRESS, help=text)
        return set(texts) - self._dataclass_names

    def _config(self, words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Values and places of the file that `--config` names, which is taken out of the words."""
        reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        reader.add_argument("--config")
        found, words[:] = reader.parse_known_args(words)
        if found.config is None:
            return {}, {}
        values, places = parse_yaml(read_file(found.config), found.config)
        variables = values.pop("env", None) or {}
        if not isinstance(variables, Mapping):
            raise UserError(f"{places['env']}env = {variables!r}: must be a mapping; write name: value")
        os.environ.update({str(name): str(value) for name, value in variables.items()})
        return values, places

    def _require_less(self, values: Mapping[str, Any]) -> None:
        """What the file gives need not be on the command line."""
        for action in self.parser._actions:
            action.required = action.required and action.dest not in values

    def _refuse(self, rest: Sequence[str], strange: Mapping[str, None], places: Mapping[str, str]) -> None:
        """Raise UserError for words and names that no class knows."""
        known = self._dataclass_names | self._settings_names
        named = _options(rest)
        lines = [placed(unknown(name, known), places) for name in [*strange, *named]]
        if rest and not named:
            lines.append(f"{rest[0]}: belongs to no option; write --name value")
        if lines:
            raise UserError("\n".join(lines))

    def _refuse_twice(self, words: Sequence[str], values: Mapping[str, Any]) -> None:
        """Raise UserError where one thing is said in TRL's words and in ours."""
        said = {*_options(words), *values}
        for ours, theirs in TWICE:
            other = next((name for name in theirs if name in said & self._dataclass_names), None)
            if other and ours in said & self._settings_names:
                raise UserError(f"{other}: {ours} says the same; keep one of them")

    def _objects(
        self, namespace: argparse.Namespace, values: Mapping[str, Any], places: Mapping[str, str]
    ) -> list[Any]:
        given = {name: value for name, value in values.items() if name in self._settings_names}
        typed = {name: words for name, words in vars(namespace).items() if name in self._settings_names}
        places = {name: place for name, place in places.items() if name not in typed}
        made = []
        for each in self.types:
            if _is_settings(each):
                read = {name: _value(each, name, words) for name, words in typed.items()}
                made.append(_settings(each, {**given, **read}, places))
            else:
                fields = [field.name for field in dataclasses.fields(each) if field.init]
                made.append(each(**{name: getattr(namespace, name) for name in fields}))
        return made


def _options(words: Iterable[str]) -> list[str]:
    """The names of the options among the words."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]


def _is_settings(each: type) -> bool:
    return issubclass(each, Settings)


def _settings(cls: type[Settings], values: dict[str, Any], places: Mapping[str, str]) -> Settings:
    """The settings; a message about a value of the file begins with its line there."""
    try:
        return cls(**values)
    except UserError as fault:
        raise UserError("\n".join(placed(line, places) for line in str(fault).splitlines())) from None


def _value(cls: type[Settings], name: str, words: list[str]) -> Any:
    """The words after an option: several are a list, none is true. Names that only TRL has have no type: as YAML."""
    text: Any = words if len(words) > 1 else words[0] if words else "true"
    if isinstance(text, list):
        return text
    return from_text(cls, name, text) if name in cls.model_fields else yaml.safe_load(text)
