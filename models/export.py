"""Writes parameters as a folder that transformers can open, shard by shard, with one tensor in memory at a time."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_json
from grpo_jax.models.families import rows
from grpo_jax.models.hf_config import load_config, published_layout
from grpo_jax.models.load import leaf_at
from grpo_jax.models.names import EMBEDDING, Row
from grpo_jax.models.safetensors_io import INDEX, SINGLE, Outgoing, as_dtype, open_folder, write_file
from grpo_jax.models.tokenizer_files import write_tokenizer

Params = dict[str, Any]
Path = str | pathlib.Path
SHARD_BYTES = 5e9  # the most bytes of a file


def save_model(
    out: Path,
    cfg: ModelConfig,
    params: Params,
    source: Path | None = None,
    dtype: Any = None,
    max_shard_bytes: float = SHARD_BYTES,
    tokenizer: Any = None,
) -> None:
    """Write `params` to the new folder `out` in Hugging Face's layout. It appears complete or not at all.

    Each tensor gets `dtype` if given, otherwise its dtype in `source`, the folder that the model came from, or its own
    without a source. Config, tokenizer and generation config are copied from `source`; without one a config.json is
    written from `cfg`. A `tokenizer`, an object or a folder, is written in place of the source's. More than
    `max_shard_bytes` bytes are split into several files with an index.

    Collective: gathering a tensor needs all processes; only the first one writes.

    Raises:
        UserError: `out` exists and is not empty, `source` has another shape, a value does not fit the dtype, or writing
            fails.
    """
    dtypes = _source_dtypes(source, cfg)

    def outgoing(row: Row, layer: int, name: str) -> Outgoing:
        array = leaf_at(params, row.path)
        if array.shape != row.shape(cfg):
            raise ValueError(f"parameter {'.'.join(row.path)} is {array.shape}, not {row.shape(cfg)}")
        target = as_dtype(dtype) if dtype is not None else dtypes.get(name, np.dtype(array.dtype))
        values = functools.partial(_fetch, row, cfg, array, layer, target)
        return Outgoing(name, row.their_shape(cfg), target, values)

    tensors = by_layer(cfg, outgoing)
    first = tensors[0].dtype.name

    def write(folder: pathlib.Path) -> None:
        write_companions(folder, cfg, source, first, tokenizer, recast=dtype is not None)
        write_shards(folder, tensors, max_shard_bytes)

    write_folder(out, tensors, write)


def by_layer(cfg: ModelConfig, outgoing: Callable[[Row, int, str], Outgoing]) -> list[Outgoing]:
    """All tensors to write, ordered by layer, so that a shard has consecutive layers."""
    tensors: list[tuple[int, Outgoing]] = []
    for row in rows(cfg):
        outside = -1 if row.name == EMBEDDING else cfg.num_layers
        for layer, name in enumerate(row.names(cfg)):
            tensors.append((layer if row.stacked else outside, outgoing(row, layer, name)))
    return [tensor for _, tensor in sorted(tensors, key=lambda placed: placed[0])]


def write_folder(out: Path, tensors: Sequence[Outgoing], write: Callable[[pathlib.Path], None]) -> None:
    """Have the first process `write` the new folder `out`, which appears complete or not at all, while the others take
    part in gathering the `tensors`. Collective.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    import jax

    if re.match(r"\w{2,}:/", str(out)):
        raise UserError(f"{out}: a bucket; write to a local folder, and copy that")
    if jax.process_index() == 0:
        with _appearing(pathlib.Path(out).resolve()) as folder:
            write(folder)
    else:
        for tensor in tensors:
            tensor.values()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"saved {out}")  # so that no process reads a half-written folder


def _fetch(row: Row, cfg: ModelConfig, array: Any, layer: int, dtype: np.dtype) -> np.ndarray:
    """One tensor from the devices, in Hugging Face's layout and in `dtype`."""
    from grpo_jax.sharding.hosts import get

    part = _layer_of(array, layer) if row.stacked else array
    values = row.to_theirs(part if isinstance(part, np.ndarray) else get(part), cfg)
    with np.errstate(over="ignore"):  # checked below, with the tensor's name in the message
        cast = values.astype(dtype, copy=False)
    if dtype.itemsize < values.dtype.itemsize and np.isinf(cast).any() and not np.isinf(values).any():
        name = row.name.format(layer=layer)
        raise UserError(f"{name}: values beyond the range of {dtype}; export as float32 or bfloat16")
    return cast


def _layer_of(array: Any, layer: int) -> Any:
    """`array[layer]`. On devices by one program for all layers: a constant index would compile a program for each."""
    return array[layer] if isinstance(array, np.ndarray) else _index_program()(array, layer)


@functools.cache
def _index_program() -> Any:
    import jax

    return jax.jit(lambda array, layer: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False))


def _shards(tensors: list[Outgoing], max_bytes: float) -> list[list[Outgoing]]:
    """Split tensors, in order, into parts of at most `max_bytes` (more only for a single tensor that is larger)."""
    shards: list[list[Outgoing]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.num_bytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.num_bytes
    return shards


def write_shards(folder: pathlib.Path, tensors: list[Outgoing], max_bytes: float = SHARD_BYTES) -> None:
    """Write the tensors to one file, or to several with an index."""
    shards = _shards(tensors, max_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.num_bytes for shard in shards for tensor in shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _source_dtypes(source: Path | None, cfg: ModelConfig) -> dict[str, np.dtype]:
    if source is None:
        return {}
    if load_config(source) != cfg:
        raise UserError(f"{source}: its config.json describes another model than the one to save")
    wanted = {name for row in rows(cfg) for name in row.names(cfg)}
    return {name: tensor.dtype for name, tensor in open_folder(source).items() if name in wanted}


def write_companions(
    folder: pathlib.Path,
    cfg: ModelConfig,
    source: Path | None,
    dtype: str,
    tokenizer: Any = None,
    *,
    recast: bool,
) -> None:
    """Write config.json and the other files of a model, unchanged except for the config's dtype if that changed. The
    tokenizer is the source's unless one is given."""
    if source is not None or tokenizer is not None:
        write_tokenizer(tokenizer if tokenizer is not None else source, folder)
    if source is None:
        write_json(folder / "config.json", published_layout(cfg, dtype))
        return
    source = pathlib.Path(source)
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if recast:
        config = read_json(source / "config.json")
        keys = config.keys() & {"dtype", "torch_dtype"} or {"torch_dtype"}  # the new and the old spelling
        write_json(folder / "config.json", config | dict.fromkeys(keys, dtype))


@contextlib.contextmanager
def _appearing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `out` that is renamed to it if the block succeeds, and removed if not."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out}: exists and is not an empty folder; remove it or choose another")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"{out}: could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
