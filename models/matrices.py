"""Forms that a matrix in a parameter tree may have, and the product that accepts all of them.

The forward pass (`models/transformer.py`) multiplies with `product` only, so each form is one class: `Quantized`
(int8), `NF4`, `OutputsFirst` (fast on CPUs), `Adapted` (a matrix with a LoRA adapter).
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Axes = tuple[int, ...]


class Matrix(ABC):
    """A form of a matrix: a registered dataclass of arrays."""

    @abstractmethod
    def times(self, x: Array, axes: Axes, dtype: Any) -> Array:
        """x [..., inputs] times the matrix, summed over its `axes`: [..., outputs] in `dtype`."""


def product(x: Array, w: Array | Matrix, axes: Axes, dtype: Any = None) -> Array:
    """x [..., inputs] times w, summed over w's `axes`, which are x's last: [..., outputs] in x's dtype, or `dtype`."""
    if isinstance(w, Matrix):
        return w.times(x, axes, jnp.dtype(dtype or x.dtype))
    return (
        _plain(x, w, axes) if dtype is None else jnp.tensordot(x, w, last(axes), preferred_element_type=dtype)
    )


def last(axes: Axes) -> tuple[Axes, Axes]:
    """Dimension numbers that contract the last axes of the left factor with `axes` of the right one."""
    return tuple(range(-len(axes), 0)), axes


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _plain(x: Array, w: Array, axes: Axes) -> Array:
    """`product` of a plain matrix, in its own dtype. Its gradient differs from the usual one in the order of factors:
    the left one is transposed, which is a slow copy on CPU, and here that is the smaller one."""
    return jnp.tensordot(x, w, last(axes))


def _plain_forward(x: Array, w: Array, axes: Axes) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, w, axes), (x, w)


def _plain_backward(axes: Axes, kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = kept
    rows = tuple(range(x.ndim - len(axes)))
    outputs = tuple(axis for axis in range(w.ndim) if axis not in axes)
    dx = jnp.tensordot(d, w, last(outputs))
    if x.size <= d.size:
        dw, order = jnp.tensordot(x, d, (rows, rows)), (*axes, *outputs)
    else:
        dw, order = jnp.tensordot(d, x, (rows, rows)), (*outputs, *axes)
    return dx, jnp.moveaxis(dw, range(w.ndim), order)


_plain.defvjp(_plain_forward, _plain_backward)


class Frozen(Matrix):
    """A form for frozen weights: gradients flow to x only.

    The residual of the backward pass is the frozen form, not the unpacked matrix, because unpacked copies of all layers
    would take as much memory as the whole model."""

    def times(self, x: Array, axes: Axes, dtype: Any) -> Array:
        return _through(x, self, axes, dtype, x.dtype)

    @abstractmethod
    def forward(self, x: Array, axes: Axes, dtype: Any) -> Array:
        """See `Matrix.times`."""

    @abstractmethod
    def backward(self, y: Array, axes: Axes, dtype: Any) -> Array:
        """y [..., outputs] times the transposed matrix: [..., inputs] in `dtype`."""

    @abstractmethod
    def plain(self, axes: Axes) -> Array:
        """The unpacked matrix. A product sums over its `axes`."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _through(x: Array, w: Frozen, axes: Axes, dtype: Any, back: Any) -> Array:
    return w.forward(x, axes, dtype)


def _pass(x: Array, w: Frozen, axes: Axes, dtype: Any, back: Any) -> tuple[Array, Frozen]:
    return w.forward(x, axes, dtype), w


def _pull(axes: Axes, dtype: Any, back: Any, w: Frozen, y: Array) -> tuple[Array, None]:
    return w.backward(y, axes, back), None


_through.defvjp(_pass, _pull)


def times_transposed(y: Array, w: Array, axes: Axes, dtype: Any) -> Array:
    """y [..., outputs] times w, summed over all of w's axes except `axes`: [..., inputs]."""
    outputs = tuple(axis for axis in range(w.ndim) if axis not in axes)
    return jnp.tensordot(y, w, last(outputs), preferred_element_type=dtype)
