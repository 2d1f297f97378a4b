"""Copies the learner's weights to the sampler on the devices, one layer at a time: there is never a third copy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.outputs_first import with_outputs_first
from grpo_jax.models.transformer import Params, sampler_weights
from grpo_jax.program import Program
from grpo_jax.sharding.mesh import on_cpu


class SamplerCopy:
    """Weights of the whole model with stacked layers -> the sampler's weights with separate layers.

    Args:
        dtype, form: as of `sampler_weights`.
        places: shardings of the sampler's weights, with stacked layers.
    """

    def __init__(self, dtype: str, form: str, places: Params, mesh: Mesh):
        self._convert = partial(sampler_weights, dtype=jnp.dtype(dtype), form=form)
        self._places, self._on_cpu, self._one_by_one = places, on_cpu(mesh), on_cpu(mesh) and mesh.size > 1
        self.layer = Program("sampler_layer", self._layer)
        self.rest = Program("sampler_rest", self._rest)

    def __call__(self, params: Params) -> Params:
        rest = self.rest({name: part for name, part in params.items() if name != "layers"})
        count = len(jax.tree.leaves(params["layers"])[0])
        return rest | {"layers": tuple(self._waited(self.layer(params["layers"], i)) for i in range(count))}

    def _waited(self, layer: Params) -> Params:
        """Wait for `layer` on CPU: virtual CPU devices deadlock when two programs with collectives run at once."""
        return jax.block_until_ready(layer) if self._one_by_one else layer

    def _layer(self, layers: Params, number: Array) -> Params:
        """Slice one layer, convert it as a model of one layer, and lay it out for the sampler."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1)
        return jax.tree.map(lambda x: x[0], self._made({"layers": jax.tree.map(cut, layers)})["layers"])

    def _rest(self, rest: Params) -> Params:
        return self._made(rest)

    def _made(self, params: Params) -> Params:
        places = {name: self._places[name] for name in params}
        laid = jax.tree.map(jax.lax.with_sharding_constraint, self._convert(params), places)
        return with_outputs_first(laid) if self._on_cpu else laid


def arguments(params: Any) -> tuple[tuple[Any, Any], tuple[Any]]:
    """The arguments of the two programs (`layer`, `rest`) for weights given as shapes."""
    rest = {name: part for name, part in params.items() if name != "layers"}
    return (params["layers"], jax.ShapeDtypeStruct((), jnp.int32)), (rest,)
