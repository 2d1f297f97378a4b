"""The sampler's weights, made of the learner's on the devices, layer by layer: no third model lives meanwhile."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.outputs_first import with_outputs_first
from grpo_jax.models.qwen import Params, sampler_weights
from grpo_jax.program import Program
from grpo_jax.sharding.mesh import on_cpu


class SamplerCopy:
    """Weights of the whole model, layers stacked -> the sampler's, layers apart, in its form.

    Args:
        dtype, form: as of `sampler_weights`.
        places: where the sampler's weights lie, layers stacked.
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
        """Virtual CPU devices must not have two programs with collectives under way: they wait for one another."""
        return jax.block_until_ready(layer) if self._one_by_one else layer

    def _layer(self, layers: Params, number: Array) -> Params:
        """One layer: cut out, converted as a model of one layer, brought where it lies."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1)
        return jax.tree.map(lambda x: x[0], self._made({"layers": jax.tree.map(cut, layers)})["layers"])

    def _rest(self, rest: Params) -> Params:
        return self._made(rest)

    def _made(self, params: Params) -> Params:
        places = {name: self._places[name] for name in params}
        laid = jax.tree.map(jax.lax.with_sharding_constraint, self._convert(params), places)
        return with_outputs_first(laid) if self._on_cpu else laid


def arguments(params: Any) -> tuple[tuple[Any, Any], tuple[Any]]:
    """What the two programs take, of weights as shapes: (of `layer`, of `rest`)."""
    rest = {name: part for name, part in params.items() if name != "layers"}
    return (params["layers"], jax.ShapeDtypeStruct((), jnp.int32)), (rest,)
