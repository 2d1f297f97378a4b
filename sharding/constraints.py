"""The handful of places where the program tells the compiler how an array lies on the mesh."""

import jax
from jax import Array
from jax.sharding import PartitionSpec

from grpo_jax.sharding.mesh import ROWS


def over_rows(x: Array, axis: int = 0) -> Array:
    """Split `axis` over the mesh's row axes; nothing where no mesh is set (`jax.set_mesh`)."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, ROWS))
