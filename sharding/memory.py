"""Arrays that wait in the host's memory and come to the device where a program uses them."""

import math
from typing import Any

import jax

_HOST = "pinned_host"


def matrices_on_host(where: Any) -> Any:
    """A model's shardings with its matrices in the memory of the hosts that the devices belong to, split as before.
    Biases and norms stay: they are small, and TPUs' compiler cuts no row of half precision out of what is so flat
    (libtpu 0.0.42)."""
    large = "kernel", "embedding"
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.with_memory_kind(_HOST) if path[-1].key in large else x, where
    )


def waits_on_host(x: Any) -> bool:
    """Whether an array, or a shape with a sharding, lies there."""
    return x.sharding is not None and x.sharding.memory_kind == _HOST


def fetched(tree: Any) -> Any:
    """Within a program: the arrays as the device has them. What is there already stays."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x, tree)


def _on_host(x: Any) -> bool:
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def bytes_of(tree: Any) -> int:
    """Of arrays or their shapes with shardings, on each device; what waits with its host takes none."""
    each = lambda x: math.prod(_part(x)) * x.dtype.itemsize
    return sum(map(each, (x for x in jax.tree.leaves(tree) if not waits_on_host(x))))


def _part(x: Any) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
