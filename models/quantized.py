"""Weights in int8, one scale for each output channel: half the bytes of bfloat16 to hold and to read.

A quantised parameter tree has the names of a plain one; a `Quantized` stands where a matrix stood, and the one forward
(`models/qwen.py`) takes both: every matrix is used through `product`, or looked up in and made plain by `dequantize`.

Every matrix is quantised, the embedding and the head too. Scales belong to output channels, so that a token's row of
the embedding has one: it serves the lookup, and the head that is tied to it. That matrix is 15 % of the 1.5B's
weights and 28 % of the 0.5B's, all read for every token drawn. Norms and biases are 0.01 % and stay as they are.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.names import summed_axes
from grpo_jax.models.outputs_first import OutputsFirst

Params = dict[str, Any]
_LARGEST = 127  # -128 is left out, so that a matrix and its negative have the same error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A matrix as values * scale. The scale's dtype is the one that it is computed in."""

    values: Array  # int8, the matrix's shape
    scale: Array  # the same number of dimensions, 1 along those that a product sums over


Matrix = Array | Quantized | OutputsFirst


def quantize(params: Params, dtype: Any) -> Params:
    """A plain tree with its matrices as `Quantized`, everything else in `dtype`, which is also the scales'.

    Symmetric round-to-nearest: |w - values * scale| <= scale / 2 for each w, whatever its channel's range. What is
    not finite makes its whole channel NaN.
    """
    of = lambda path, x: quantize_leaf(tuple(key.key for key in path), x, dtype)
    return jax.tree_util.tree_map_with_path(of, params)


def quantize_leaf(path: tuple[str, ...], x: Array, dtype: Any) -> Array | Quantized:
    """One leaf of the tree, as `quantize` has it."""
    axes = summed_axes().get(path)
    return x.astype(dtype) if axes is None else Quantized(*rounded(x, axes, dtype))


def rounded(x: Array, axes: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """`x` as int8 values times a scale in `dtype`, one for all that lies along `axes`, where its size is 1."""
    wide = x.astype(jnp.float32)
    # Not 0, where a channel is all zeros or its values are so small that the division would end there.
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / _LARGEST, jnp.finfo(jnp.float32).tiny)
    scale = scale.astype(dtype)  # before the division: the values make up for what bfloat16 rounds off
    values = jnp.clip(jnp.round(wide / scale.astype(jnp.float32)), -_LARGEST, _LARGEST)
    return values.astype(jnp.int8), scale


def product(x: Array, w: Matrix, axes: tuple[int, ...], dtype: Any = None) -> Array:
    """x [..., inputs] times w, summed over w's `axes`, which are x's last: [..., outputs] in x's dtype, or `dtype`.

    Scales multiply the sums, not the weights. Each int8 is exact in bfloat16, so nothing is rounded before the sum, and
    a conversion is all that stands between the memory and the matrix unit: compilers for TPUs and GPUs make it while
    they read, where a scaled matrix would be written out first (CUDA) and read again.
    """
    if isinstance(w, OutputsFirst):
        return w.times(x, len(axes), dtype)
    over = tuple(range(-len(axes), 0)), axes
    if not isinstance(w, Quantized):
        return (
            _plain(x, w, axes) if dtype is None else jnp.tensordot(x, w, over, preferred_element_type=dtype)
        )
    sums = jnp.tensordot(x, w.values.astype(x.dtype), over, preferred_element_type=jnp.float32)
    return (sums * w.scale.squeeze(axes)).astype(dtype or x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _plain(x: Array, w: Array, axes: tuple[int, ...]) -> Array:
    """`product` of a plain matrix, in its own dtype. Its gradient is the usual one, but for the order of the factors:
    the left one must be transposed, which on CPU is a slow copy, and here that is the narrower one."""
    return jnp.tensordot(x, w, (tuple(range(-len(axes), 0)), axes))


def _plain_forward(x: Array, w: Array, axes: tuple[int, ...]) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, w, axes), (x, w)


def _plain_backward(axes: tuple[int, ...], kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = kept
    rows = tuple(range(x.ndim - len(axes)))
    outputs = tuple(axis for axis in range(w.ndim) if axis not in axes)
    dx = jnp.tensordot(d, w, (tuple(range(-len(outputs), 0)), outputs))
    if x.size <= d.size:
        dw, order = jnp.tensordot(x, d, (rows, rows)), (*axes, *outputs)
    else:
        dw, order = jnp.tensordot(d, x, (rows, rows)), (*outputs, *axes)
    return dx, jnp.moveaxis(dw, range(w.ndim), order)


_plain.defvjp(_plain_forward, _plain_backward)


def dequantize(w: Matrix) -> Array:
    """The matrix, or part of it, in the scale's dtype; one that is not quantised as it is."""
    if isinstance(w, OutputsFirst):
        return w.values
    return w.values.astype(w.scale.dtype) * w.scale if isinstance(w, Quantized) else w
