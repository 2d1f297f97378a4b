"""Weights in int8 with one scale per output channel: half the memory and bandwidth of bfloat16.

A quantized parameter tree has the names of a plain one, with a `Quantized` in place of each matrix. The same forward
pass (`models/transformer.py`) accepts both: it uses matrices through `product`, and looks up rows with `dequantize`.

Every matrix is quantized, including embedding and head. Scales belong to output channels, so a token's row of the
embedding has one scale, which serves both the lookup and a tied head. That matrix has 15 % of the 1.5B's weights and
28 % of the 0.5B's, all of them read for every sampled token. Norms and biases are 0.01 % and are not quantized.

In the form nf4 (`models/nf4.py`) the layers' matrices have four bits; embedding and head, which the paper does not
quantize, are in int8.
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
_LARGEST = 127  # -128 is not used, so that a matrix and its negative have the same error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized(Frozen):
    """A matrix as values * scale. The scale's dtype is the compute dtype.

    Scales multiply the sums, not the weights. Every int8 is exact in bfloat16, so nothing is rounded before the sum,
    and values are only converted on their way from memory to the matrix unit. Compilers for TPUs and GPUs do that while
    reading; a scaled matrix would first be written to memory (CUDA) and read again.
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
        """The matrix in the scale's dtype."""
        return self.values.astype(self.scale.dtype) * self.scale


def quantize(params: Params, dtype: Any, form: str = "int8") -> Params:
    """A plain tree with its matrices as `Quantized` or `NF4`, and everything else (scales too) in `dtype`.

    int8 rounds symmetrically to the nearest value: |w - values * scale| <= scale / 2 for each w, whatever the range of
    its channel. A weight that is not finite makes its whole channel (nf4: block) NaN.
    """

    def leaf(path: Any, x: Array) -> Array | Frozen:
        return quantize_leaf(x, *axes_and_form(tuple(key.key for key in path), form), dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def axes_and_form(path: tuple[str, ...], form: str) -> tuple[Axes | None, str]:
    """The axes that a product with the leaf at `path` sums over (None: no matrix), and its form in a tree of `form`."""
    return summed_axes().get(path), form if path[0] == "layers" else "int8"


def quantize_leaf(x: Array, axes: Axes | None, form: str, dtype: Any) -> Array | Frozen:
    """One leaf of the tree, quantized as by `quantize`. It depends on no name, so that leaves of equal shapes share a
    compiled program."""
    if axes is None:
        return x.astype(dtype)
    return nf4(x, axes, dtype) if form == "nf4" else Quantized(*rounded(x, axes, dtype))


def errors(x: Array, q: Array | Frozen, axes: Axes | None) -> tuple[Array, Array]:
    """Sums of squares in float32: of the error of a leaf `q` that was made from `x`, and of x."""
    plain = q.plain(axes or ()) if isinstance(q, Frozen) else q
    squares = lambda x: jnp.square(x.astype(jnp.float32)).sum()
    return squares(x.astype(jnp.float32) - plain.astype(jnp.float32)), squares(x)


def rounded(x: Array, axes: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """`x` as int8 values times a scale in `dtype`, which has size 1 along `axes`."""
    wide = x.astype(jnp.float32)
    # Not 0, if a channel is all zeros or so small that the division underflows.
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / _LARGEST, jnp.finfo(jnp.float32).tiny)
    scale = scale.astype(dtype)  # before the division, so that the values compensate its rounding to bfloat16
    values = jnp.clip(jnp.round(wide / scale.astype(jnp.float32)), -_LARGEST, _LARGEST)
    return values.astype(jnp.int8), scale


def dequantize(w: Array | Matrix) -> Array:
    """The matrix, or part of it, in the scale's dtype; one that is not quantized unchanged."""
    if isinstance(w, OutputsFirst):
        return w.values
    return w.plain() if isinstance(w, Quantized) else w  # type: ignore[return-value]
