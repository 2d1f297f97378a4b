"""Reads and writes LoRA adapters in PEFT's format, and models with an adapter merged.

A PEFT folder has an adapter_config.json and an adapter_model.safetensors with, for each linear layer, A [R,inputs] and
B [outputs,R] as the weights of two linear layers. `peft.PeftModel.from_pretrained` opens folders written here.
"""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import numpy as np

from grpo_jax.errors import UserError, nearest
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_json
from grpo_jax.models.export import (
    by_layer,
    write_companions,
    write_folder,
    write_json,
    write_shards,
)
from grpo_jax.models.load import leaf_at, read_rows
from grpo_jax.models.lora import TARGETS, LoRA, change
from grpo_jax.models.names import Row
from grpo_jax.models.peft_fields import check_adapter
from grpo_jax.models.safetensors_io import Outgoing, Stored, open_folder, read_header, write_file
from grpo_jax.models.tokenizer_files import write_tokenizer

Params = dict[str, Any]
Path = str | pathlib.Path
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_lora(folder: Path) -> LoRA:
    """Rank, scale and targets of the adapter in `folder`, from its configuration and the names of its tensors.

    Raises:
        UserError: the folder has no adapter, or one that is not supported (`models/peft_fields.py`).
    """
    folder = pathlib.Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG}; give a folder that PEFT or a run with lora_r wrote")
    config = read_json(folder / CONFIG)
    check_adapter(folder / CONFIG, config)
    sizes = config.get("r"), config.get("lora_alpha")
    if not (isinstance(sizes[0], int) and sizes[0] > 0 and isinstance(sizes[1], int | float)):
        raise UserError(
            f"{folder / CONFIG}: r and lora_alpha must be numbers, and are {sizes[0]!r} and {sizes[1]!r}"
        )
    if not math.isfinite(sizes[1]):
        raise UserError(f"{folder / CONFIG}: lora_alpha = {sizes[1]}: must be finite")
    modules = {module for name in _tensors(folder) for module in name.split(".")}
    targets = tuple(name for name in TARGETS if f"{name}_proj" in modules)
    return LoRA(sizes[0], float(sizes[1]), targets, bool(config.get("use_rslora")))


def load_adapters(folder: Path, cfg: ModelConfig, lora: LoRA, shardings: Params | None = None) -> Params:
    """The adapters in `folder`, in float32, sharded by `shardings`. Raises UserError if tensors do not fit."""
    check_adapters(folder, cfg, lora)
    return read_rows(lora.rows(cfg), _tensors(folder), cfg, shardings, "float32")


def check_adapters(folder: Path, cfg: ModelConfig, lora: LoRA) -> None:
    """Raise UserError if the tensors in `folder` do not fit the model. Reads their headers only."""
    expected = {name: row.their_shape(cfg) for row in lora.rows(cfg) for name in row.names(cfg)}
    _check(pathlib.Path(folder), _tensors(folder), expected)


def save_adapters(
    out: Path, cfg: ModelConfig, adapters: Params, lora: LoRA, base: str, tokenizer: Any
) -> None:
    """Write the adapters to the new folder `out` in PEFT's format. It appears complete or not at all. Collective.

    Args:
        base: the model's name in the configuration.
        tokenizer: an object, or a folder from which its files are copied.
    """
    on_host = _on_host(adapters)
    tensors = []
    for row in lora.rows(cfg):
        for layer, name in enumerate(row.names(cfg)):
            values = functools.partial(row.to_theirs, leaf_at(on_host, row.path)[layer], cfg)
            tensors.append(Outgoing(name, row.their_shape(cfg), np.dtype(np.float32), values))

    def write(folder: pathlib.Path) -> None:
        write_tokenizer(tokenizer, folder)
        write_file(folder / WEIGHTS, tensors)
        write_json(folder / CONFIG, _config(lora, base))

    write_folder(out, [], write)


def save_merged(
    out: Path, cfg: ModelConfig, adapters: Params, lora: LoRA, source: Path, tokenizer: Any = None
) -> None:
    """Write the model in `source` with the adapters merged into its weights, each tensor in its own dtype. Collective.

    They are added in float32 to the weights as published, whatever form the frozen weights had in training. Tensors
    without an adapter are copied bit by bit. A `tokenizer`, an object or a folder, is written in place of the source's.
    """
    on_host, stored = _on_host(adapters), open_folder(source)

    def outgoing(row: Row, layer: int, name: str) -> Outgoing:
        values = functools.partial(_merged, stored[name], row, cfg, on_host, lora.scale, layer)
        return Outgoing(name, row.their_shape(cfg), stored[name].dtype, values)

    tensors = by_layer(cfg, outgoing)

    def write(folder: pathlib.Path) -> None:
        write_companions(folder, cfg, source, tensors[0].dtype.name, tokenizer, recast=False)
        write_shards(folder, tensors)

    write_folder(out, [], write)


def _merged(
    stored: Stored, row: Row, cfg: ModelConfig, adapters: Params, scale: float, layer: int
) -> np.ndarray:
    weights = stored.open()
    adapter = adapters.get("layers", {}).get(row.path[1]) if row.path[-1] == "kernel" else None
    if adapter is None:
        return weights
    a, b = (adapter["kernel"][half][layer] for half in ("lora_a", "lora_b"))
    added = row.to_theirs(np.asarray(change(a, b, scale)), cfg)
    return (weights.astype(np.float32) + added).astype(weights.dtype)


def _on_host(adapters: Params) -> Params:
    import jax

    from grpo_jax.sharding.hosts import get

    return jax.tree.map(get, adapters)


def _config(lora: LoRA, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.use_rslora,
        "target_modules": [f"{name}_proj" for name in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _tensors(folder: Path) -> dict[str, Stored]:
    file = pathlib.Path(folder) / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: no {WEIGHTS}; save the adapter with safe_serialization")
    return read_header(file)


def _check(folder: pathlib.Path, tensors: dict[str, Stored], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(
                f"{folder}: tensor {name} of shape {list(shape)} is missing{nearest(name, tensors)}"
            )
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise UserError(f"{folder}: tensor {name} has shape {found}; the model and r need {list(shape)}")
        _ = tensors[name].dtype  # UserError for one that is not supported
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise UserError(
            f"{folder}: tensor {unknown[0]} has no place here: adapters of {', '.join(TARGETS)} do"
        )
