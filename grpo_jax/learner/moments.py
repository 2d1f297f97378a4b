"""An optimizer whose moments are stored in bfloat16: half the memory, and exact on average.

Adam's second moment moves by a thousandth of itself at a time, less than half of bfloat16's spacing: rounded to the
nearest it would never fall again. Rounded up or down at random, with the chances that make the mean exact, it
follows (stochastic rounding; Gupta et al. 2015, arXiv:1502.02551).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class Compact(NamedTuple):
    """An optimizer's state with its moments in bfloat16."""

    updates: Array  # [] int32, taken so far: what the rounding's random numbers are a function of
    inner: Any


def in_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer; it computes in float32 and stores rounded moments."""

    def init(params: Any) -> Compact:
        narrow = lambda x: x.astype(jnp.bfloat16)
        return Compact(
            jnp.int32(0), optax.tree_utils.tree_map_params(optimizer, narrow, optimizer.init(params))
        )

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Compact]:
        wide = optax.tree_utils.tree_map_params(optimizer, lambda x: x.astype(jnp.float32), state.inner)
        changes, inner = optimizer.update(grads, wide, params)
        key = jax.random.fold_in(jax.random.key(0), state.updates)
        leaf = itertools.count()
        narrow = lambda x: rounded(jax.random.fold_in(key, next(leaf)), x)
        inner = optax.tree_utils.tree_map_params(optimizer, narrow, inner)
        return changes, Compact(state.updates + 1, inner)

    return optax.GradientTransformation(init, update)


def rounded(key: Array, x: Array) -> Array:
    """Float32 x as one of the two bfloat16 numbers around it, at random; its expectation is x."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)  # for the bits that are dropped
    raw = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    exact = jax.lax.bitcast_convert_type(raw, jnp.float32)
    return jnp.where(jnp.isfinite(x), exact, x).astype(jnp.bfloat16)
