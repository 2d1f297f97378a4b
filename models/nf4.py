"""Weights in four bits: NormalFloat4 of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E).

A block of 64 weights along a matrix's inputs shares one scale, its largest magnitude; each weight is the nearest of
16 levels (quantiles of a normal distribution) times the scale. With scales in bfloat16 that is 4.25 bits per weight.
(The paper also quantizes the scales, for 4.13 bits, which would save 20 MB of the 1.5B's 696 MB; this is not done.)

A matrix is unpacked where it is used, inside the scan over layers, so that only one layer is unpacked at a time.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.matrices import Axes, Frozen, last, times_transposed

BLOCK = 64
# Appendix E of the paper. Zero is one of the levels, and the negative and positive halves have their own quantiles.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NF4(Frozen):
    """A matrix in blocks along the last of its input axes, which is half as long here: two weights per byte.

    A byte holds a weight of its block's first half (low bits) and one of its second half, so that unpacking copies
    contiguous runs."""

    codes: Array  # uint8, inputs / 2
    absmax: Array  # inputs / block, in the compute dtype

    def forward(self, x: Array, axes: Axes, dtype: Any) -> Array:
        wide = self.plain(axes).astype(x.dtype)
        return jnp.tensordot(x, wide, last(axes), preferred_element_type=dtype)

    def backward(self, y: Array, axes: Axes, dtype: Any) -> Array:
        return times_transposed(y.astype(dtype), self.plain(axes).astype(dtype), axes, dtype)

    def plain(self, axes: Axes) -> Array:
        """The matrix in float32: the levels times the scales of their blocks."""
        axis = axes[-1]
        before, inputs, after = _around(self.codes, axis)
        halves = self.codes.reshape(*before, self.absmax.shape[axis], -1, *after)
        codes = jnp.concatenate([halves & 15, halves >> 4], axis=axis + 1)
        scales = jnp.expand_dims(self.absmax.astype(jnp.float32), axis + 1)
        return (_level(codes) * scales).reshape(*before, 2 * inputs, *after)


def nf4(x: Array, axes: Axes, dtype: Any) -> NF4:
    """`x` in blocks along the last of the `axes` that a product sums over. A block has gcd(64, length of that axis)
    weights."""
    axis = axes[-1]
    before, inputs, after = _around(x, axis)
    block = math.gcd(inputs, BLOCK)
    assert block > 1, f"{inputs} inputs: two weights share a byte"
    blocks = x.astype(jnp.float32).reshape(*before, -1, block, *after)
    absmax = jnp.maximum(jnp.abs(blocks).max(axis + 1), jnp.finfo(jnp.float32).tiny).astype(dtype)
    first, second = jnp.split(
        _code(blocks / jnp.expand_dims(absmax.astype(jnp.float32), axis + 1)), 2, axis + 1
    )
    return NF4((first | second << 4).reshape(*before, inputs // 2, *after), absmax)


def _around(x: Array, axis: int) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    return x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]


def _code(x: Array) -> Array:
    """The index of the level nearest to each x, uint8."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(LEVELS)]
    return sum((x > middle).astype(jnp.uint8) for middle in middles)  # type: ignore[return-value]


def _level(codes: Array) -> Array:
    """The level of each code, float32, selected bit by bit, because accelerators have no fast table lookup."""
    levels: list[Any] = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        levels = [jnp.where(odd, high, low) for low, high in zip(levels[::2], levels[1::2])]
    return levels[0]
