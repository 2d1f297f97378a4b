"""The entries of a cache, keys or values: plain arrays, or int8 with a scale for each token and head.

int8 takes a little more than half the memory and bandwidth of bfloat16. The scales multiply the scores and weights of
an attention rather than the keys and values, so that entries are only converted on their way from memory to the matrix
unit. `quantized.py` does the rounding.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.quantized import rounded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """An array [...,H] as values * scale."""

    values: Array  # [...,H] int8
    scale: Array  # [...], in the compute dtype


Entries = Array | Int8


def zeros(shape: tuple[int, ...], dtype: Any, form: str) -> Entries:
    """Entries [...,H] of zeros: in `dtype` for the form `auto`, or in int8 with scales of that dtype."""
    if form == "auto":
        return jnp.zeros(shape, dtype)
    return Int8(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], dtype))


def like(whole: Entries, new: Array) -> Entries:
    """`new` [...,H] in the form of `whole`."""
    if not isinstance(whole, Int8):
        return new
    values, scale = rounded(new, (-1,), whole.scale.dtype)
    return Int8(values, scale[..., 0])


def turned(x: Entries) -> Entries:
    """Entries [...,T,H] transposed to [...,H,T]."""
    swap = lambda values: values.swapaxes(-1, -2)
    return Int8(swap(x.values), x.scale) if isinstance(x, Int8) else swap(x)


def values_of(x: Entries) -> Array:
    """The values [...,H], without the scales."""
    return x.values if isinstance(x, Int8) else x


def scaled(x: Array, by: Entries, axes: tuple[int, ...]) -> Array:
    """x [...,T], with one number per token of `by`, times the scales of these; `axes` are those that `by` lacks."""
    return x * jnp.expand_dims(by.scale, axes).astype(x.dtype) if isinstance(by, Int8) else x


def put(whole: Entries, new: Entries, slot: Array, axis: int) -> Entries:
    """`whole` with `new` written from `slot` on along `axis`."""

    def write(whole: Array, new: Array) -> Array:
        start: list[Any] = [0] * whole.ndim
        start[axis] = slot
        return jax.lax.dynamic_update_slice(whole, new, start)

    return jax.tree.map(write, whole, new)
