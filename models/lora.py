"""LoRA (Hu et al. 2021, arXiv:2106.09685): a frozen matrix W computes as W + scale * A B, with A and B of low rank.

Adapters are a tree of their own, `{"layers": {"q": {"kernel": {"lora_a": ..., "lora_b": ...}}}}`, with the paths of the
table in `models/names.py`. Only they are trained. `joined` combines them with the frozen weights into a tree for the
same forward pass, with an `Adapted` in place of each matrix that has an adapter.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families import family_of
from grpo_jax.models.matrices import Axes, Matrix, last, product
from grpo_jax.models.names import Row

Params = dict[str, Any]
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoRA:
    """Which matrices get adapters, and the rank and scale of these."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS  # in that order
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """alpha / rank; with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def rows(self, cfg: ModelConfig) -> list["AdapterRow"]:
        """The table of its tensors in our layout and PEFT's."""
        table = family_of(cfg).table
        adapted = [row for row in table if row.path[-1] == "kernel" and row.path[-2] in self.targets]
        return [half for row in adapted for half in _halves(row, self.rank)]


@dataclass(frozen=True)
class AdapterRow(Row):
    """A row of the table with one more dimension letter: R, the rank."""

    rank: int = 0

    def size(self, letter: str, cfg: ModelConfig) -> int:
        return self.rank if letter == "R" else super().size(letter, cfg)


def _halves(row: Row, rank: int) -> list[AdapterRow]:
    """The rows for A [L,inputs,R] and B [L,R,outputs] of a linear layer; PEFT has them as two linear layers."""
    outputs, inputs = row.theirs
    name = "base_model.model." + row.name.removesuffix("weight")
    return [
        AdapterRow((*row.path, "lora_a"), name + "lora_A.weight", ("R", inputs), inputs + "R", rank),
        AdapterRow((*row.path, "lora_b"), name + "lora_B.weight", (outputs, "R"), "R" + outputs, rank),
    ]


def init_adapters(cfg: ModelConfig, lora: LoRA, key: Array) -> Params:
    """Initial float32 adapters, which do not change the model: A uniform within 1 / sqrt(inputs), as in PEFT; B = 0."""

    def leaf(number: int, row: AdapterRow) -> Array:
        shape = row.shape(cfg)
        if row.path[-1] == "lora_b":
            return jnp.zeros(shape)
        bound = 1 / math.sqrt(math.prod(shape[1:-1]))
        return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)

    return nested({row.path: leaf(number, row) for number, row in enumerate(lora.rows(cfg))})


@cache
def abstract_adapters(cfg: ModelConfig, lora: LoRA) -> Params:
    """The adapters as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: init_adapters(cfg, lora, jax.random.key(0)))


def nested(leaves: dict[tuple[str, ...], Any]) -> Params:
    """Leaves by path, as a tree of dicts."""
    tree: Params = {}
    for path, leaf in leaves.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base:
    """Frozen weights, and the scale of the adapters that are trained beside them."""

    params: Params
    scale: float = field(metadata={"static": True})


@dataclass(frozen=True)
class Dropout:
    """Each adapter leaves out this share of its inputs at random, and scales up the others, as in PEFT."""

    rate: float
    key: Array

    def of(self, number: Array | int) -> "Dropout":
        """The same with a key for one of several."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))

    def keys(self, layers: int) -> Array:
        """[L,2] uint32, the data of a key for each layer."""
        return jax.random.key_data(jax.random.split(self.key, layers))


def joined(trained: Params, base: Base | None, dropout: Dropout | None = None) -> Params:
    """The whole model: the trained weights, combined with the frozen ones if there are any."""
    return trained if base is None else _join(base.params, trained, base.scale, dropout)


def _join(base: Any, adapters: Params, scale: float, dropout: Dropout | None) -> Any:
    if "lora_a" in adapters:
        a, b = adapters["lora_a"], adapters["lora_b"]
        if dropout is None:
            return Adapted(base, a, b, scale)
        return Adapted(base, a, b, scale, dropout.keys(len(a)), dropout.rate)
    own = lambda number: None if dropout is None else dropout.of(number)
    parts = enumerate(adapters.items())
    return base | {name: _join(base[name], part, scale, own(number)) for number, (name, part) in parts}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted(Matrix):
    """The matrix base + scale * A B, multiplied as two small products beside the large one."""

    base: Array | Matrix
    lora_a: Array  # [inputs...,R]
    lora_b: Array  # [R,outputs...]
    scale: float = field(metadata={"static": True})
    key: Array | None = None  # [2] uint32, of dropout
    dropout: float = field(default=0.0, metadata={"static": True})

    def times(self, x: Array, axes: Axes, dtype: Any) -> Array:
        kept = x if self.key is None else self._thinned(x)
        low = jnp.tensordot(kept, self.lora_a, last(tuple(range(len(axes)))))
        return product(x, self.base, axes, dtype) + self.scale * jnp.tensordot(low, self.lora_b, 1)

    def _thinned(self, x: Array) -> Array:
        assert self.key is not None
        stays = jax.random.bernoulli(jax.random.wrap_key_data(self.key), 1 - self.dropout, x.shape)
        return jnp.where(stays, x / (1 - self.dropout), 0).astype(x.dtype)


def merged(params: Params) -> Params:
    """The tree with adapters merged into plain matrices, one layer at a time. Adapters of quantized matrices remain
    separate."""
    merge_leaf = lambda x: jax.lax.map(merge, x) if _is_adapted(x) and not isinstance(x.base, Matrix) else x
    return jax.tree.map(merge_leaf, params, is_leaf=_is_adapted)


def _is_adapted(x: Any) -> bool:
    return isinstance(x, Adapted)


def merge(w: Adapted) -> Array:
    """The merged matrix of one layer, summed in float32 and cast to the matrix's dtype."""
    assert isinstance(w.base, Array)
    sum_ = w.base.astype(jnp.float32) + change(w.lora_a, w.lora_b, w.scale)
    return sum_.astype(w.base.dtype)


def change(lora_a: Array, lora_b: Array, scale: float) -> Array:
    """scale * A B in float32, of one layer: [inputs...,R] and [R,outputs...] -> [inputs...,outputs...]."""
    a, b = (x.astype(jnp.float32) for x in (lora_a, lora_b))
    return scale * jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
