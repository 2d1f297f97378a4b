"""Weights with their outputs first, which CPUs multiply fastest with few rows.

XLA's products on CPU copy their right operand into blocks at every call, and read the left one in place. With few rows,
as in decoding, copying the weights costs up to a third of the product (two x86 cores, 32 rows: 58 to 72 GFLOP/s per
core with the weights on the right, 80 to 95 on the left). The left operand must have the summed axes last.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.families import summed_axes
from grpo_jax.models.matrices import Axes, Matrix

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputsFirst(Matrix):
    """A matrix [outputs..., inputs...]; plain ones may be [inputs..., outputs...]."""

    values: Array

    def times(self, x: Array, axes: Axes, dtype: Any) -> Array:
        inputs = tuple(range(-len(axes), 0))
        product = jnp.tensordot(self.values, x, (inputs, inputs), preferred_element_type=dtype)
        outputs = self.values.ndim - len(axes)
        return jnp.moveaxis(product, range(outputs), range(-outputs, 0))


def with_outputs_first(params: Params) -> Params:
    """The tree with every plain matrix as `OutputsFirst`. An embedding already has that layout, and is not copied."""
    return jax.tree_util.tree_map_with_path(_turned, params, is_leaf=lambda x: not isinstance(x, dict))


def _turned(path: tuple, x: Any) -> Any:
    axes = summed_axes().get(tuple(key.key for key in path))
    if axes is None or not isinstance(x, jax.Array):
        return x
    last = tuple(range(-len(axes), 0))
    return OutputsFirst(x if axes == tuple(x.ndim + i for i in last) else jnp.moveaxis(x, axes, last))
