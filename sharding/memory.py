"""Arrays in host memory, which are transferred to the device where a program uses them; and bytes per device."""

import math
from typing import Any

import jax

_HOST = "pinned_host"


def matrices_on_host(layout: Any) -> Any:
    """A model's shardings with its matrices in host memory, split as before. Biases and norms stay on the device: they
    are small, and the compiler for TPUs cannot slice a half-precision row out of such flat arrays (libtpu 0.0.42)."""
    large = "kernel", "embedding"
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.with_memory_kind(_HOST) if path[-1].key in large else x, layout
    )


def waits_on_host(x: Any) -> bool:
    """Whether an array, or a shape with a sharding, is in host memory."""
    return x.sharding is not None and x.sharding.memory_kind == _HOST


def fetched(tree: Any) -> Any:
    """The arrays in device memory, for use within a program. Those that are there already are not copied."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x, tree)


def _on_host(x: Any) -> bool:
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def bytes_of(tree: Any) -> int:
    """Bytes on each device of arrays or shapes with shardings; those in host memory take none."""
    each = lambda x: math.prod(_part(x)) * x.dtype.itemsize
    return sum(map(each, (x for x in jax.tree.leaves(tree) if not waits_on_host(x))))


def _part(x: Any) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
