"""What a cache holds of keys or values: plain arrays, or int8 with a scale for each token and head.

int8 is a little more than half of bfloat16, to hold and to read. Scales multiply the scores and the weights of an
attention, not the keys and values, so that a conversion is all that stands between the memory and the matrix unit
(see `quantized.py`, whose rounding this is).
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
    """[...,H] as values * scale."""

    values: Array  # [...,H] int8
    scale: Array  # [...], in the dtype that is computed in


Entries = Array | Int8


def zeros(shape: tuple[int, ...], dtype: Any, form: str) -> Entries:
    """Entries [...,H] in `dtype` (`auto`) or in `int8` with scales of that dtype."""
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
    """[...,T,H] as [...,H,T]."""
    swap = lambda values: values.swapaxes(-1, -2)
    return Int8(swap(x.values), x.scale) if isinstance(x, Int8) else swap(x)


def values_of(x: Entries) -> Array:
    """[...,H], without the scales."""
    return x.values if isinstance(x, Int8) else x


def scaled(x: Array, by: Entries, axes: tuple[int, ...]) -> Array:
    """x [...,T], a number for each token of `by`, times their scales; `axes` are those of x that `by` has not."""
    return x * jnp.expand_dims(by.scale, axes).astype(x.dtype) if isinstance(by, Int8) else x


def put(whole: Entries, new: Entries, slot: Array, axis: int) -> Entries:
    """`new` written over `whole`, from `slot` on along `axis`."""

    def write(whole: Array, new: Array) -> Array:
        start: list[Any] = [0] * whole.ndim
        start[axis] = slot
        return jax.lax.dynamic_update_slice(whole, new, start)

    return jax.tree.map(write, whole, new)
