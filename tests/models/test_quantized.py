"""int8 weights: how far they are from the weights, and that the one forward computes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from grpo_jax.models.config import PUBLISHED
from grpo_jax.models.matrices import product
from grpo_jax.models.quantized import Quantized, axes_and_form, dequantize, quantize, quantize_leaf
from grpo_jax.models.transformer import abstract_params, cast, head_logits, hidden_states

GATE = axes_and_form(("layers", "gate", "kernel"), "int8")
gate_in_int8 = jax.jit(lambda x, dtype: quantize_leaf(x, *GATE, dtype), static_argnums=1)
is_quantized = lambda x: isinstance(x, Quantized)
plain = lambda tree: jax.tree.map(dequantize, tree, is_leaf=is_quantized)
exact = lambda q: np.asarray(q.values, np.float64) * np.asarray(q.scale, np.float64)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request, tiny, random_params):
    """(configuration, float32 parameters)."""
    cfg = dataclasses.replace(tiny, tie_word_embeddings=request.param)
    return cfg, random_params(cfg)


def forward(cfg, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return head_logits(cfg, params, hidden_states(cfg, params, tokens, positions)[0])


def some_tokens(cfg, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, cfg.vocab_size, (4, 12)))


# ---- error


channels = arrays.arrays(
    np.float32,
    (2, 5, 3),
    elements=st.floats(-1, 1, width=32) | st.just(0.0),
)
ranges = arrays.arrays(np.float32, (2, 1, 3), elements=st.sampled_from([0, 1e-38, 1e-12, 1, 3e4, 1e38]))


@settings(deadline=None, max_examples=60)
@given(
    x=channels,
    size=ranges,
    source=st.sampled_from(["float32", "bfloat16"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_int8_moves_no_weight_by_more_than_half_a_step(x, size, source, dtype):
    """In channels of any range, of zeros, of denormals; whatever the scale is rounded to."""
    x = jnp.asarray(x * size).astype(source)
    q = gate_in_int8(x, dtype)
    assert (q.values.dtype, q.scale.dtype, q.values.shape, q.scale.shape) == (
        "int8",
        dtype,
        x.shape,
        (2, 1, 3),
    )
    assert np.isfinite(np.asarray(q.scale, np.float64)).all()
    assert np.abs(np.asarray(q.values, int)).max() <= 127
    error = np.abs(np.asarray(x, np.float64) - exact(q))
    denormal = float(np.finfo(np.float32).tiny)  # XLA computes with 0 in place of anything smaller
    assert (error <= np.asarray(q.scale, np.float64) * 0.5 * (1 + 1e-5) + denormal).all()


def test_a_channel_of_zeros_stays_zero():
    x = jnp.zeros((1, 4, 2)).at[0, :, 1].set(1.0)
    np.testing.assert_array_equal(dequantize(gate_in_int8(x, jnp.float32))[..., 0], 0.0)
    np.testing.assert_allclose(dequantize(gate_in_int8(x, jnp.float32))[..., 1], 1.0)


def test_a_large_channel_does_not_reduce_the_resolution_of_others():
    x = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)
    other = x.copy()
    other[:, :, 2] *= 1e6
    a, b = (gate_in_int8(jnp.asarray(w), jnp.float32) for w in (x, other))
    np.testing.assert_array_equal(np.delete(a.values, 2, axis=2), np.delete(b.values, 2, axis=2))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_stay_so(broken):
    """A run that has diverged must not go on sampling from weights that look sound."""
    x = jnp.ones((1, 4, 2)).at[0, 1, 0].set(broken)
    w = dequantize(gate_in_int8(x, jnp.float32))
    assert np.isnan(w[..., 0]).any()
    assert np.isfinite(w[..., 1]).all()
    assert not np.isfinite(
        product(jnp.ones((1, 4)), quantize_leaf(x[0], (0,), "int8", "float32"), (0,))[0, 0]
    )


# ---- the tree


@pytest.mark.parametrize("size", PUBLISHED)
def test_all_matrices_and_nothing_else_are_quantised_along_their_outputs(size):
    shapes = abstract_params(PUBLISHED[size])
    tree = jax.eval_shape(lambda p: quantize(p, jnp.bfloat16), shapes)
    left = jax.tree.map(lambda x: (), tree, is_leaf=is_quantized)
    assert jax.tree.structure(left) == jax.tree.structure(jax.tree.map(lambda x: (), shapes)), (
        "names have changed"
    )
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_quantized):
        assert is_quantized(x) == (path[-1].key in ("kernel", "embedding")), path
        assert is_quantized(x) or x.dtype == jnp.bfloat16
    cfg, layers = PUBLISHED[size], tree["layers"]
    L, D, F = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size
    assert tree["embed"]["embedding"].scale.shape == (cfg.vocab_size, 1)
    assert layers["q"]["kernel"].scale.shape == (L, 1, cfg.num_heads, cfg.head_dim)
    assert layers["k"]["kernel"].scale.shape == (L, 1, cfg.num_kv_heads, cfg.head_dim)
    assert layers["o"]["kernel"].scale.shape == (L, 1, 1, D)
    assert layers["up"]["kernel"].scale.shape == (L, 1, F)
    assert layers["down"]["kernel"].scale.shape == (L, 1, D)
    if not cfg.tie_word_embeddings:
        assert tree["head"]["kernel"].scale.shape == (1, cfg.vocab_size)


def test_a_cast_changes_the_scales_and_keeps_int8_values(tiny, tiny_params):
    tree = cast(quantize(tiny_params, jnp.float32), jnp.bfloat16)
    gate = tree["layers"]["gate"]["kernel"]
    assert (gate.values.dtype, gate.scale.dtype) == (jnp.int8, jnp.bfloat16)


# ---- the forward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forward_computes_with_the_values_times_the_scales(model, dtype):
    """The same numbers written out as a plain tree give the same logits: in bfloat16 to its own rounding."""
    cfg, params = model
    tree, tokens = quantize(params, jnp.dtype(dtype)), some_tokens(cfg)
    found, wanted = (np.asarray(forward(cfg, t, tokens)) for t in (tree, plain(tree)))
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= {"float32": 1e-5, "bfloat16": 0.05}[dtype] * np.abs(wanted).max()


def test_scales_on_the_sums_round_less_than_scaled_weights(tiny, tiny_params):
    """In bfloat16: an int8 is exact there, an int8 times its scale is not."""
    tree, tokens = quantize(tiny_params, jnp.bfloat16), some_tokens(tiny)
    wide = cast(tree, jnp.float32)
    true = np.asarray(forward(tiny, wide, tokens))
    error = lambda t: np.square(np.asarray(forward(tiny, t, tokens)) - true).mean()
    assert error(tree) < error(plain(tree))


def test_logits_of_int8_weights_are_near_those_of_the_weights(model):
    cfg, params = model
    tokens = some_tokens(cfg)
    true, found = (np.asarray(forward(cfg, p, tokens)) for p in (params, quantize(params, jnp.float32)))
    error = np.sqrt(np.square(found - true).mean()) / true.std()
    assert 1e-4 < error < 0.05, "the error of eight bits"


def test_gradients_pass_through_quantised_products(tiny, tiny_params):
    """Adapters over an int8 base will need them: through the products, and with recomputation."""
    tree, tokens = quantize(tiny_params, jnp.float32), some_tokens(tiny)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def total(scale, tree):
        layers = tree["layers"] | {"input_norm": {"scale": scale}}
        hidden, _ = hidden_states(tiny, tree | {"layers": layers}, tokens, positions, remat="full")
        return (head_logits(tiny, tree, hidden) ** 2).mean()

    gradient = jax.jit(jax.grad(total))
    scale = tree["layers"]["input_norm"]["scale"]
    found, wanted = gradient(scale, tree), gradient(scale, plain(tree))
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
