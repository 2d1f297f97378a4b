"""Reads values of a `config.json` with checks. Raises UserError with the file, the key and the value."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.other_formats import advice

Json = dict[str, Any]


def read_json(path: pathlib.Path) -> Json:
    """The JSON object in `path`. Raises UserError if the file is absent, unreadable or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = advice(path.parent) or "a model folder needs it"
        raise UserError(f"{path}: no such file; {found}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def refuse_missing(raw: Json, keys: Iterable[str], path: pathlib.Path) -> None:
    """Raise UserError unless all `keys` are present: a default would be a guess about the weights."""
    if missing := sorted(set(keys) - raw.keys()):
        raise UserError(f"{path}: missing {', '.join(missing)}; copy the model's own config.json again")


def refuse_other_values(raw: Json, only: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raise UserError if a key of `only` has another value than the supported one. Absent and null keys are allowed."""
    for key, value in only.items():
        if raw.get(key) is not None and raw[key] != value:
            fix = (
                "dequantize the weights first" if value is None else f"only {json.dumps(value)} is supported"
            )
            raise UserError(f"{path}: {key} is {short(raw[key])}; {fix}")


def integer(raw: Json, key: str, path: pathlib.Path) -> int:
    """A positive whole number."""
    value = raw[key]
    if type(value) is not int or value < 1:  # True is an int to isinstance
        raise UserError(f"{path}: {key} must be a positive whole number, not {short(value)}")
    return value


def number(raw: Json, key: str, path: pathlib.Path) -> float:
    """A positive, finite number."""
    value = raw[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{path}: {key} must be a positive number, not {short(value)}")
    return float(value)


def boolean(raw: Json, key: str, path: pathlib.Path) -> bool:
    """True or false."""
    value = raw[key]
    if not isinstance(value, bool):
        raise UserError(f"{path}: {key} must be true or false, not {short(value)}")
    return value


def short(value: Any) -> str:
    """The value as JSON, 60 characters at most."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
