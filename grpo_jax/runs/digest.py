"""A digest of a tensor that does not depend on how the tensor is laid out over devices."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ON_HOST = 2**20
"""Elements up to which NumPy is done before a program for the devices is compiled: one for each shape."""


def digest(x: jax.Array | np.ndarray) -> int:
    """A digest of a tensor in 32 bits, the same for every mesh and sharding.

    Integers that wrap around add up to the same in every order, so each device sums over what it holds. Each
    element is hashed together with its position by a bijection of its bits: a change of one element always
    shows, and any other damage goes unnoticed with a chance of 2^-32 (as with a CRC-32).
    """
    x = jnp.asarray(x)
    if x.size <= ON_HOST and x.is_fully_addressable:
        with np.errstate(over="ignore"):  # a single number warns where it wraps around
            return int(_digest(np, np.asarray(x)))
    return int(on_devices(x))


@jax.jit
def on_devices(x: jax.Array) -> jax.Array:
    """uint32 []: the digest, summed where the tensor lies."""
    return _digest(jnp, x)


def _digest(xp: ModuleType, x: Any) -> Any:
    """The formula, of `xp`'s arrays."""
    words = _words(xp, x)
    position = xp.zeros(words.shape, xp.uint32)
    for axis in range(words.ndim):
        index = xp.arange(words.shape[axis], dtype=xp.uint32)
        position = _mix(xp, position + xp.expand_dims(index, tuple(range(1, words.ndim - axis))))
    return xp.sum(_mix(xp, words ^ position), dtype=xp.uint32)


def _words(xp: ModuleType, x: Any) -> Any:
    """The bits of `x` as uint32, an element a word."""
    if x.dtype == xp.bool_:
        return x.astype(xp.uint32)
    same_width = {1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]
    return x.view(same_width).astype(xp.uint32)


def _mix(xp: ModuleType, h: Any) -> Any:
    """The finalizer of MurmurHash3 (public domain): a bijection of 32 bits. Shifted, as it maps 0 to 0."""
    h = h + xp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * xp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * xp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
