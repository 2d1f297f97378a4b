"""Sharding constraints: tell the compiler how an array is split over the mesh."""

import math

import jax
from jax import Array
from jax.sharding import PartitionSpec

from grpo_jax.sharding.mesh import ROWS


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Split each dimension of `x` over the mesh axes named for it. Does nothing if no mesh is set (`jax.set_mesh`).

    Dimensions that are not named are whole on every device. Manual axes of `jax.shard_map` are ignored.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    left = [_without(mesh.manual_axes, axis) for axis in axes]
    return (
        jax.lax.with_sharding_constraint(x, PartitionSpec(*left)) if any(left) or not mesh.manual_axes else x
    )


def _without(manual: tuple, axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return tuple(name for name in names if name not in manual)


def over_rows(x: Array, axis: int = 0) -> Array:
    """Split dimension `axis` over the mesh's row axes."""
    return constrain(x, *[None] * axis, ROWS)


def rows_split() -> int:
    """The number of parts over which rows are split in the program being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _without(mesh.manual_axes, ROWS))
