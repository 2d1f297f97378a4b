"""nf4: each weight is the nearest of sixteen levels, and products compute with just these weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.models import nf4 as rule
from grpo_jax.models.matrices import product
from grpo_jax.models.nf4 import LEVELS, NF4
from grpo_jax.models.quantized import Quantized, quantize, rounded

nf4 = jax.jit(rule.nf4, static_argnums=(1, 2))
int8 = jax.jit(lambda w, axes: Quantized(*rounded(w, axes, "float32")), static_argnums=1)
plain = jax.jit(lambda matrix, axes: matrix.plain(axes), static_argnums=1)

# (shape, axes that a product sums over): of a gate [D,F], of q [D,N,H], of o [N,H,D]
LAYOUTS = [((128, 5), (0,)), ((192, 2, 3), (0,)), ((3, 64, 4), (0, 1)), ((2, 24, 5), (0, 1))]


def weights(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-30, 0.02, 1.0, 3e4]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_nf4_rounds_every_weight_to_the_nearest_level_of_its_block(layout, seed, scale, dtype):
    """Against a search over all levels in float64; ties may go either way."""
    shape, axes = layout
    x = weights(shape, seed, scale)
    q = nf4(jnp.asarray(x), axes, dtype)
    axis = axes[-1]
    block = math.gcd(64, shape[axis])
    blocks = np.moveaxis(x, axis, 0).reshape(-1, block, *np.moveaxis(x, axis, 0).shape[1:])
    absmax = np.asarray(jnp.asarray(np.abs(blocks).max(1)).astype(dtype), np.float64)
    levels = np.asarray(LEVELS) * absmax[:, None, ..., None]
    error = np.abs(blocks[..., None] - levels).min(-1)
    found = np.moveaxis(np.asarray(plain(q, axes), np.float64), axis, 0).reshape(blocks.shape)
    np.testing.assert_allclose(np.abs(found - blocks), error, atol=1e-6 * absmax.max())


def test_nf4_packs_two_weights_a_byte_and_keeps_one_scale_a_block():
    q = nf4(jnp.asarray(weights((128, 5))), (0,), "bfloat16")
    assert (q.codes.shape, q.codes.dtype) == ((64, 5), jnp.uint8)
    assert (q.absmax.shape, q.absmax.dtype) == ((2, 5), jnp.bfloat16)


def test_levels_and_zeros_are_exact():
    x = np.zeros((64, 17), np.float32)
    x[:, 1:] = LEVELS
    x[0, 1:] = 1.0  # each block's largest
    np.testing.assert_array_equal(plain(nf4(jnp.asarray(x), (0,), "float32"), (0,)), x)


def test_a_nan_makes_its_whole_block_nan():
    x = weights((128, 3))
    x[70, 1] = np.nan
    bad = np.isnan(np.asarray(plain(nf4(jnp.asarray(x), (0,), "float32"), (0,))))
    assert bad[64:, 1].all()
    assert bad.sum() == 64


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS)
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_quantised_products_and_gradients_equal_those_of_plain_weights(shape, axes, form):
    x = weights((7, *(shape[a] for a in axes)), 1)
    w = jnp.asarray(weights(shape))
    q = nf4(w, axes, "float32") if form == "nf4" else int8(w, axes)
    value = jax.jit(jax.value_and_grad(lambda x, w: (product(x, w, axes) ** 2).sum()))
    of_q, of_plain = (value(jnp.asarray(x), m) for m in (q, plain(q, axes)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), of_q, of_plain)


def test_a_tree_has_nf4_in_its_layers_and_int8_in_embedding_and_head(tiny, random_params):
    tree = jax.jit(quantize, static_argnums=(1, 2))(random_params(tiny), "bfloat16", "nf4")
    kinds = {
        "/".join(key.key for key in path): type(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))
        if not isinstance(leaf, jax.Array)
    }
    assert kinds == {f"layers/{n}/kernel": NF4 for n in ("q", "k", "v", "o", "gate", "up", "down")} | {
        "embed/embedding": Quantized,
        "head/kernel": Quantized,
    }
