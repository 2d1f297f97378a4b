"""Safetensors to sharded JAX arrays: each process reads only the slices that its own devices hold."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.errors import UserError, nearest
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families import rows
from grpo_jax.models.names import EMBEDDING, HEAD, Row
from grpo_jax.models.safetensors_io import Stored, as_dtype, open_folder

Params = dict[str, Any]
Index = tuple[slice, ...]
# A buffer that old exports wrote; it is a function of the config.
RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")


def load_params(
    folder: str | pathlib.Path,
    cfg: ModelConfig,
    shardings: Params | None = None,
    dtype: Any = "float32",
    finish: Callable[[tuple[str, ...], Any], Any] = lambda path, array: array,
    table: Sequence[Row] | None = None,
) -> Params:
    """The parameters of the checkpoint in `folder`, as the plain tree of `models/qwen.py`, in `dtype`; of another
    `table` than a language model's, as the tree that its paths say.

    `shardings` is the same tree of `jax.sharding.Sharding`s; without it the arrays land on the default
    device. One leaf is in host memory at a time, and of it only what this process's devices hold.
    `finish(path, array)` makes what the tree holds of each leaf, before the next one is read.

    Raises UserError, before anything big is read, for a tensor that is missing, unknown, of the wrong shape
    or of a dtype that is no 16- or 32-bit float, and for damaged or missing files.
    """
    tensors = open_folder(folder)
    table = rows(cfg) if table is None else table
    check_tensors(tensors, cfg, folder, table)
    return read_rows(table, tensors, cfg, shardings, dtype, finish)


def read_rows(
    table: Sequence[Row],
    tensors: Mapping[str, Stored],
    cfg: ModelConfig,
    shardings: Params | None,
    dtype: Any,
    finish: Callable[[tuple[str, ...], Any], Any] = lambda path, array: array,
) -> Params:
    """The leaves of `table` as a tree, from tensors that are all there; the rest as in `load_params`."""
    import jax

    params: Params = {}
    for row in table:
        leaf = Leaf(row, cfg, [tensors[name] for name in row.names(cfg)], as_dtype(dtype))
        branch = params
        for key in row.path[:-1]:
            branch = branch.setdefault(key, {})
        if shardings is None:
            array = jax.device_put(leaf.read((slice(None),) * len(row.shape(cfg))))
        else:
            array = _make_sharded(leaf, leaf_at(shardings, row.path))
        branch[row.path[-1]] = finish(row.path, array)
    return params


class Leaf:
    """One array of our tree, readable slice by slice from the tensors that hold it."""

    def __init__(self, row: Row, cfg: ModelConfig, tensors: list[Stored], dtype: np.dtype):
        self.shape, self.stacked, self.dtype = row.shape(cfg), row.stacked, dtype
        self.layers = [row.to_ours(tensor.open(), cfg) for tensor in tensors]

    def read(self, index: Index) -> np.ndarray:
        """The values at `index`, contiguous, in the dtype asked for; no other bytes of the files are read."""
        if not self.stacked:
            return self.layers[0][index].astype(self.dtype, order="C")
        layers = [layer[index[1:]] for layer in self.layers[index[0]]]
        out = np.empty((len(layers), *layers[0].shape), self.dtype)
        for target, layer in zip(out, layers, strict=True):
            target[...] = layer
        return out


def _make_sharded(leaf: Leaf, sharding: Any) -> Any:
    import jax

    seen: dict[Any, np.ndarray] = {}

    def read_once(index: Index | None) -> np.ndarray:
        """JAX asks once a device; devices that hold the same slice share one read."""
        assert index is not None  # JAX's type allows it for arrays without dimensions
        key = tuple((s.start, s.stop) for s in index)
        if key not in seen:
            seen[key] = leaf.read(index)
        return seen[key]

    return jax.make_array_from_callback(leaf.shape, sharding, read_once, dtype=leaf.dtype)


def check_tensors(
    tensors: dict[str, Stored],
    cfg: ModelConfig,
    folder: str | pathlib.Path,
    table: Sequence[Row] | None = None,
) -> None:
    """UserError unless the headers hold exactly what a language model of this shape, or the `table`, needs."""
    table = rows(cfg) if table is None else table
    expected = {name: row.their_shape(cfg) for row in table for name in row.names(cfg)}
    for name, shape in expected.items():
        if name not in tensors:
            near = nearest(name, tensors.keys() - expected.keys())
            raise UserError(f"{folder}: tensor {name} of shape {list(shape)} is missing{near}")
        found = tensors[name]
        if found.shape != shape:
            raise UserError(
                f"{found.file}: tensor {name} has shape {list(found.shape)}; config.json says {list(shape)}"
            )
        found.dtype  # noqa: B018  (raises for what cannot be read)
    for name in tensors.keys() - expected.keys():
        if not RECOMPUTED.fullmatch(name) and not (name == HEAD and cfg.tie_word_embeddings):
            raise UserError(
                f"{tensors[name].file}: tensor {name} of shape {list(tensors[name].shape)} has no place in a "
                f"model of {cfg.num_layers} layers; check num_hidden_layers in config.json"
            )
    if cfg.tie_word_embeddings and HEAD in tensors:
        _check_tied(tensors[HEAD], tensors[EMBEDDING])


def _check_tied(head: Stored, embedding: Stored) -> None:
    """A head beside a tied embedding must be its copy: transformers would use one that differs."""
    same_kind = head.shape == embedding.shape and head.dtype == embedding.dtype
    if not (same_kind and np.array_equal(_words(head), _words(embedding))):
        raise UserError(
            f"{head.file}: tensor {HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings; "
            "set it to false"
        )


def _words(tensor: Stored) -> np.ndarray:
    values = tensor.open()
    return values.view(f"u{values.dtype.itemsize}")


def leaf_at(tree: Params, path: tuple[str, ...]) -> Any:
    """What stands at `path` of a nested tree."""
    for key in path:
        tree = tree[key]
    return tree
