"""A digest of a tensor that does not depend on how the tensor is laid out over devices."""

import jax
import jax.numpy as jnp


@jax.jit
def digest(x: jax.Array) -> jax.Array:
    """uint32: a digest of a tensor, the same for every mesh and sharding.

    Integers that wrap around add up to the same in every order, so each device sums over what it holds. Each
    element is hashed together with its position by a bijection of its bits: a change of one element always
    shows, and any other damage goes unnoticed with a chance of 2^-32 (as with a CRC-32).
    """
    words = _words(x)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        position = _mix(position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis))
    return jnp.sum(_mix(words ^ position), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32, an element a word (two for 64-bit types, in a trailing axis)."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    same_width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, same_width).astype(jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (public domain): a bijection of 32 bits. Shifted, as it maps 0 to 0."""
    h = h + jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
