"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as transformers' Trainer runs it: with the schedule's learning
rate, without momentum, and without scaling by the parameters.

Of the second moments of a matrix only the means over its inputs and over its outputs are kept. They keep the matrix's
axes, those that they are means over with size 1, so they are split over a mesh as the matrix is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from grpo_jax.learner.matrix_axes import in_layers, matrix_axes

_DECAY, _LEAST, _CLIP = 0.8, 1e-30, 1.0


class Factors(NamedTuple):
    """Running means of squared gradients. Biases and norms have theirs in `rows`, each by itself, and in `columns`
    nothing: size 1 along all axes."""

    updates: Array  # [] int32, taken so far
    rows: Any  # for each parameter: over a matrix's outputs
    columns: Any  # for each parameter: over a matrix's inputs


def scale_by_factored_rms() -> optax.GradientTransformation:
    """Gradients divided by the root of their factored second moments, and scaled down to a root mean square of 1."""
    return optax.GradientTransformation(_init, _update)


def _init(params: Any) -> Factors:
    rows, columns = (jax.tree_util.tree_map_with_path(mean, params) for mean in (_over_outputs, _over_inputs))
    return Factors(jnp.int32(0), *(jax.tree.map(jnp.zeros_like, x) for x in (rows, columns)))


def _update(grads: Any, state: Factors, params: Any = None) -> tuple[Any, Factors]:
    updates = state.updates + 1
    decay = 1 - updates.astype(jnp.float32) ** -_DECAY
    squares = jax.tree.map(lambda g: jnp.square(g) + _LEAST, grads)
    run = lambda mean, old: jax.tree_util.tree_map_with_path(
        lambda path, before, x: decay * before + (1 - decay) * mean(path, x), old, squares
    )
    rows, columns = run(_over_outputs, state.rows), run(_over_inputs, state.columns)
    steps = jax.tree_util.tree_map_with_path(_step, grads, rows, columns)
    return steps, Factors(updates, rows, columns)


def _over_outputs(path: Any, x: Array) -> Array:
    axes = matrix_axes(path, x)
    return x if axes is None else x.mean(axes.outputs, keepdims=True)


def _over_inputs(path: Any, x: Array) -> Array:
    axes = matrix_axes(path, x)
    return jnp.ones((1,) * x.ndim, x.dtype) if axes is None else x.mean(axes.inputs, keepdims=True)


def _step(path: Any, grad: Array, rows: Array, columns: Array) -> Array:
    axes = matrix_axes(path, grad)
    if axes is None:
        scaled = grad * jax.lax.rsqrt(rows)
    else:
        share = rows / rows.mean(axes.inputs, keepdims=True)
        scaled = grad * jax.lax.rsqrt(share) * jax.lax.rsqrt(columns)
    own = tuple(range(int(in_layers(path)), grad.ndim))  # every layer's parameter by itself
    rms = jnp.sqrt(jnp.square(scaled).mean(own, keepdims=True))
    return scaled / jnp.maximum(rms / _CLIP, 1.0)
