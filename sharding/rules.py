"""Sharding rules for parameters: which mesh axis splits which dimension, in training and in the rollout.

A rule is a regular expression on the parameter's path (`layers/q/kernel`) and a PartitionSpec. Every parameter must
match exactly one rule, and every split dimension must be divisible; both are checked before anything is loaded.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from grpo_jax.errors import UserError

Rules = tuple[tuple[str, Spec], ...]

# A quantized matrix has two arrays: its values are split like the matrix, its scales like the output channels (nf4: 64
# inputs share a scale, and these few are not split along inputs). A matrix with an adapter has all that under `base`;
# each half of the adapter is split like the matrix, and the rank is whole.
# Training: each matrix is split once over `fsdp` (gathered when its layer runs) and once over `tensor`
# (columns in, rows out, so that a block needs two reductions; Megatron-LM, arXiv:1909.08053).
_WHOLE = r"(/base)?(/values|/codes)?"
TRAIN_RULES: Rules = (
    (r"embed/embedding(/values)?", Spec("tensor", "fsdp")),  # [V,D]
    (r"layers/[qkv]/kernel" + _WHOLE, Spec(None, "fsdp", "tensor", None)),  # [L,D,N|K,H]
    (r"layers/[qkv]/bias", Spec(None, "tensor", None)),  # [L,N|K,H]
    (r"layers/o/kernel" + _WHOLE, Spec(None, "tensor", None, "fsdp")),  # [L,N,H,D]
    (r"layers/(gate|up)/kernel" + _WHOLE, Spec(None, "fsdp", "tensor")),  # [L,D,F]
    (r"layers/down/kernel" + _WHOLE, Spec(None, "tensor", "fsdp")),  # [L,F,D]
    (r"layers/(input|post)_norm/scale", Spec(None, None)),  # [L,D]
    (r"norm/scale", Spec(None)),  # [D]
    (r"head/kernel(/values)?", Spec("fsdp", "tensor")),  # [D,V]
    (r"score/kernel", Spec("fsdp", None)),  # [D,1], of a reward model
    (r"embed/embedding/scale", Spec("tensor", None)),  # [V,1]
    (r"layers/[qkv]/kernel(/base)?/(scale|absmax)", Spec(None, None, "tensor", None)),  # [L,1,N|K,H]
    (r"layers/o/kernel(/base)?/(scale|absmax)", Spec(None, None, None, "fsdp")),  # [L,1,1,D]
    (r"layers/(gate|up)/kernel(/base)?/(scale|absmax)", Spec(None, None, "tensor")),  # [L,1,F]
    (r"layers/down/kernel(/base)?/(scale|absmax)", Spec(None, None, "fsdp")),  # [L,1,D]
    (r"head/kernel/scale", Spec(None, "tensor")),  # [1,V]
    (r"layers/([qkv]|gate|up)/kernel/lora_a", Spec(None, "fsdp", None)),  # [L,D,R]
    (r"layers/[qkv]/kernel/lora_b", Spec(None, None, "tensor", None)),  # [L,R,N|K,H]
    (r"layers/(gate|up)/kernel/lora_b", Spec(None, None, "tensor")),  # [L,R,F]
    (r"layers/o/kernel/lora_a", Spec(None, "tensor", None, None)),  # [L,N,H,R]
    (r"layers/down/kernel/lora_a", Spec(None, "tensor", None)),  # [L,F,R]
    (r"layers/(o|down)/kernel/lora_b", Spec(None, None, "fsdp")),  # [L,R,D]
)


def _without(axis: str, rules: Rules) -> Rules:
    drop = lambda spec: Spec(*(None if name == axis else name for name in spec))
    return tuple((pattern, drop(spec)) for pattern, spec in rules)


# Rollout: a step of one token has too little work to overlap with a gather, so weights are whole along `fsdp`.
ROLLOUT_RULES: Rules = _without("fsdp", TRAIN_RULES)


def specs(params: Any, rules: Rules) -> Any:
    """The tree of PartitionSpecs for a tree of arrays (or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: _spec_of(_name(path), x, rules), params)


def shardings(params: Any, rules: Rules, mesh: Mesh) -> Any:
    """The tree of NamedShardings. Raises UserError if a split dimension does not divide over the mesh."""

    def sharding(path, x):
        name = _name(path)
        spec = _spec_of(name, x, rules)
        _check_divides(name, x.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def _name(path: tuple) -> str:
    """A parameter's path, joined from keys of dicts and fields of dataclasses."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _spec_of(name: str, x: Any, rules: Rules) -> Spec:
    matches = [spec for pattern, spec in rules if re.fullmatch(pattern, name)]
    if len(matches) != 1 or len(matches[0]) != len(x.shape):
        raise ValueError(
            f"parameter {name} {tuple(x.shape)} matches {len(matches)} sharding rules: {matches}"
        )
    return matches[0]


def _check_divides(name: str, shape: tuple[int, ...], spec: Spec, mesh: Mesh) -> None:
    for size, axes in zip(shape, spec):
        names: tuple[str, ...] = () if axes is None else (axes,) if isinstance(axes, str) else axes
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise UserError(
                f"mesh: {name} {tuple(shape)} has a dimension of {size} that does not divide over "
                f"{'x'.join(names)}={parts}; choose a {names[0]} size that divides {size}"
            )
