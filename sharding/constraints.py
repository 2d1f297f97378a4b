"""The handful of places where the program tells the compiler how an array lies on the mesh."""

import math

import jax
from jax import Array
from jax.sharding import PartitionSpec

from grpo_jax.sharding.mesh import ROWS


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Split each dimension of `x` over the mesh axes named for it; nothing where no mesh is set (`jax.set_mesh`).

    Dimensions that are not named are whole on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def over_rows(x: Array, axis: int = 0) -> Array:
    """Split dimension `axis` over the mesh's row axes."""
    return constrain(x, *[None] * axis, ROWS)


def rows_split() -> int:
    """Over how many parts rows are split in the program being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROWS)
