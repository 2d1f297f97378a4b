"""Loads safetensors as sharded JAX arrays: each process reads only the slices of its own devices."""

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
# A buffer in old exports; the config determines its values.
RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")


def load_params(
    folder: str | pathlib.Path,
    cfg: ModelConfig,
    shardings: Params | None = None,
    dtype: Any = "float32",
    finish: Callable[[tuple[str, ...], Any], Any] = lambda path, array: array,
    table: Sequence[Row] | None = None,
) -> Params:
    """The parameters of the checkpoint in `folder`, in `dtype`: the tree of `models/transformer.py`, or that of another
    `table`'s paths.

    `shardings` is a tree of `jax.sharding.Sharding`s of the same structure; without it the arrays are on the default
    device. Only one leaf at a time is in host memory, and of it only the part for this process's devices.
    `finish(path, array)` converts each leaf before the next one is read.

    Raises:
        UserError: a tensor is missing, unknown, of the wrong shape, or not a 16- or 32-bit float, or files are damaged
            or missing. Raised before anything large is read.
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
    """The leaves of `table` as a tree, from tensors that are known to exist. See `load_params`."""
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
    """One array of our tree, which is read slice by slice from the tensors that hold it."""

    def __init__(self, row: Row, cfg: ModelConfig, tensors: list[Stored], dtype: np.dtype):
        self.shape, self.stacked, self.dtype = row.shape(cfg), row.stacked, dtype
        self.layers = [row.to_ours(tensor.open(), cfg) for tensor in tensors]

    def read(self, index: Index) -> np.ndarray:
        """The values at `index`, contiguous, in the requested dtype. Reads no other bytes of the files."""
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
        """The values at `index`. JAX calls this once per device; devices with the same slice share one read."""
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
    """Raise UserError unless the headers have exactly the tensors of a language model of this shape, or of `table`."""
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
        found.dtype  # noqa: B018  (raises for a dtype that cannot be read)
    for name in tensors.keys() - expected.keys():
        if not RECOMPUTED.fullmatch(name) and not (name == HEAD and cfg.tie_word_embeddings):
            raise UserError(
                f"{tensors[name].file}: tensor {name} of shape {list(tensors[name].shape)} has no place in a "
                f"model of {cfg.num_layers} layers; check num_hidden_layers in config.json"
            )
    if cfg.tie_word_embeddings and HEAD in tensors:
        _check_tied(tensors[HEAD], tensors[EMBEDDING])


def _check_tied(head: Stored, embedding: Stored) -> None:
    """Check that a head beside a tied embedding is a copy of it: transformers would use one that differs."""
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
