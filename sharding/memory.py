"""Arrays that wait in the host's memory and come to the device where a program uses them."""

from typing import Any

import jax
from jax.sharding import NamedSharding

_HOST = "pinned_host"


def on_host(where: NamedSharding) -> NamedSharding:
    """The same split, in the memory of the hosts that the devices belong to."""
    return where.with_memory_kind(_HOST)


def waits_on_host(x: Any) -> bool:
    """Whether an array, or a shape with a sharding, lies there."""
    return x.sharding is not None and x.sharding.memory_kind == _HOST


def fetched(tree: Any) -> Any:
    """Within a program: the arrays as the device has them. What is there already stays."""

    def one(x: Any) -> Any:
        waits = jax.typeof(x).memory_space == jax.memory.Space.Host
        return jax.device_put(x, jax.memory.Space.Device) if waits else x

    return jax.tree.map(one, tree)
