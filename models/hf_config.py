"""Reads a model folder's `config.json` and `generation_config.json`: the shape, and the tokens that end and pad.

The family of the `model_type` reads the shape. A key that changes the computation in a way that the forward pass does
not implement is refused, never ignored: training the wrong function would give no sign of the mistake.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import Json, read_json
from grpo_jax.models.families import family_named, family_of

Path = str | pathlib.Path


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`, from its `config.json` alone.

    Raises:
        UserError: the folder or file is missing, the JSON is invalid, the family is not in `families.FAMILIES`, a key
            is missing or has the wrong type, or the forward pass does not implement its value (sliding windows, other
            activations, rope scaling other than YaRN, quantized weights).
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.parent.is_dir():
        raise UserError(f"{folder}: no such model folder")
    raw = read_json(path)
    shape = family_named(raw.get("model_type"), path).read_config(raw, path)
    return dataclasses.replace(shape, model_type=raw["model_type"])


def load_eos_ids(folder: Path) -> tuple[int, ...]:
    """All token ids that end a completion: `eos_token_id` of `generation_config.json`, or else of `config.json`.

    Qwen2.5-Instruct has two in the first file and one in the second. Empty if neither file has any.
    """
    value = _special_id(folder, "eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{folder}: eos_token_id {value!r} must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def load_pad_id(folder: Path) -> int | None:
    """`pad_token_id` of `generation_config.json`, or else of `config.json`; None if neither has one."""
    value = _special_id(folder, "pad_token_id")
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{folder}: pad_token_id {value!r} must be a token id")
    return value


def published_layout(cfg: ModelConfig, dtype: str) -> Json:
    """The `config.json` of `cfg`, in the layout that every transformers release since 4.45 reads."""
    family = family_of(cfg)
    names = {"architectures": [family.language_model], "model_type": cfg.model_type}
    return names | family.write_config(cfg, dtype)


def _special_id(folder: Path, key: str) -> Any:
    generation = pathlib.Path(folder) / "generation_config.json"
    value = read_json(generation).get(key) if generation.is_file() else None
    return read_json(pathlib.Path(folder) / "config.json").get(key) if value is None else value
