"""Weights in int8, one scale for each output channel: half the bytes of bfloat16 to hold and to read.

A quantised parameter tree has the names of a plain one; a `Quantized` stands where a matrix stood, and the one forward
(`models/qwen.py`) takes both: every matrix is used through `product`, or looked up in and made plain by `dequantize`.

Every matrix is quantised, the embedding and the head too. Scales belong to output channels, so that a token's row of
the embedding has one: it serves the lookup, and the head that is tied to it. That matrix is 15 % of the 1.5B's
weights and 28 % of the 0.5B's, all read for every token drawn. Norms and biases are 0.01 % and stay as they are.

In the form nf4 (`models/nf4.py`) the layers' matrices are in four bits; embedding and head, which the paper leaves
wide, are in int8.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.families import summed_axes
from grpo_jax.models.matrices import Axes, Frozen, Matrix, last, times_transposed
from grpo_jax.models.nf4 import nf4
from grpo_jax.models.outputs_first import OutputsFirst

Params = dict[str, Any]
_LARGEST = 127  # -128 is left out, so that a matrix and its negative have the same error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized(Frozen):
    """A matrix as values * scale. The scale's dtype is the one that it is computed in.

    Scales multiply the sums, not the weights. Each int8 is exact in bfloat16, so nothing is rounded before the sum, and
    a conversion is all that stands between the memory and the matrix unit: compilers for TPUs and GPUs make it while
    they read, where a scaled matrix would be written out first (CUDA) and read again.
    """

    values: Array  # int8, the matrix's shape
    scale: Array  # the same number of dimensions, 1 along those that a product sums over

    def forward(self, x: Array, axes: Axes, dtype: Any) -> Array:
        wide = self.values.astype(x.dtype)
        sums = jnp.tensordot(x, wide, last(axes), preferred_element_type=jnp.float32)
        return (sums * self.scale.squeeze(axes)).astype(dtype)

    def backward(self, d: Array, axes: Axes, dtype: Any) -> Array:
        scaled = (d.astype(jnp.float32) * self.scale.squeeze(axes)).astype(dtype)
        return times_transposed(scaled, self.values.astype(dtype), axes, dtype)

    def plain(self, axes: Axes = ()) -> Array:
        """In the scale's dtype."""
        return self.values.astype(self.scale.dtype) * self.scale


def quantize(params: Params, dtype: Any, form: str = "int8") -> Params:
    """A plain tree with its matrices as `Quantized`, or `NF4`, and everything else in `dtype`, which is also the
    scales'.

    int8 is symmetric round-to-nearest: |w - values * scale| <= scale / 2 for each w, whatever its channel's range. What
    is not finite makes its whole channel (nf4: block) NaN.
    """
    leaf = lambda path, x: quantize_leaf(tuple(key.key for key in path), x, dtype, form)
    return jax.tree_util.tree_map_with_path(leaf, params)


def quantize_leaf(path: tuple[str, ...], x: Array, dtype: Any, form: str = "int8") -> Array | Frozen:
    """One leaf of the tree, as `quantize` has it."""
    axes = summed_axes().get(path)
    if axes is None:
        return x.astype(dtype)
    return (
        nf4(x, axes, dtype) if form == "nf4" and path[0] == "layers" else Quantized(*rounded(x, axes, dtype))
    )


def errors(path: tuple[str, ...], x: Array, q: Array | Frozen) -> tuple[Array, Array]:
    """Squares summed in float32: of what a leaf `q` is off `x`, of which it was made, and of x."""
    plain = q.plain(summed_axes()[path]) if isinstance(q, Frozen) else q
    squares = lambda x: jnp.square(x.astype(jnp.float32)).sum()
    return squares(x.astype(jnp.float32) - plain.astype(jnp.float32)), squares(x)


def rounded(x: Array, axes: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """`x` as int8 values times a scale in `dtype`, one for all that lies along `axes`, where its size is 1."""
    wide = x.astype(jnp.float32)
    # Not 0, where a channel is all zeros or its values are so small that the division would end there.
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / _LARGEST, jnp.finfo(jnp.float32).tiny)
    scale = scale.astype(dtype)  # before the division: the values make up for what bfloat16 rounds off
    values = jnp.clip(jnp.round(wide / scale.astype(jnp.float32)), -_LARGEST, _LARGEST)
    return values.astype(jnp.int8), scale


def dequantize(w: Array | Matrix) -> Array:
    """The matrix, or part of it, in the scale's dtype; one that is not quantised as it is."""
    if isinstance(w, OutputsFirst):
        return w.values
    return w.plain() if isinstance(w, Quantized) else w  # type: ignore[return-value]
