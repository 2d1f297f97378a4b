"""Keys and values in int8: near what was written, token by token, and used as if the scales were multiplied in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.attention import decode
from grpo_jax.models.cache import Layer, empty_cache
from grpo_jax.models.entries import Int8, like, scaled, turned, values_of, zeros

S, G, SLOTS, TP = 2, 3, 5, 4


def test_int8_entries_are_within_half_a_step_of_what_was_written():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 8)) * jnp.geomspace(1e-3, 1e3, 5)[:, None]
    entries = like(zeros(x.shape, jnp.float32, "int8"), x)
    assert entries.values.dtype == jnp.int8
    assert entries.scale.shape == (2, 3, 5)
    error = np.abs(np.asarray(entries.values * entries.scale[..., None] - x))
    assert (error <= np.asarray(entries.scale)[..., None] * 0.5001).all()
    assert (np.abs(entries.values).max(-1) == 127).all(), "each token has a range of its own"


def test_each_token_is_scaled_by_its_own_scale():
    entries = Int8(jnp.ones((2, 3, 4), jnp.int8), jnp.arange(6.0).reshape(2, 3))
    x = jnp.ones((2, 7, 3))
    np.testing.assert_array_equal(
        scaled(x, entries, (1,)), np.arange(6.0).reshape(2, 1, 3) * np.ones((2, 7, 3))
    )
    assert scaled(x, entries.values, (1,)) is x
    assert values_of(turned(entries)).shape == (2, 4, 3)


def wide_of(entries):
    """As `wide`, for either layout."""
    flat = entries.values.shape[:-1] == entries.scale.shape
    return wide(entries) if flat else entries.values * entries.scale[..., None, :]


def wide(entries):
    """The same numbers without rounding left to do."""
    return entries.values * entries.scale[..., None]


def test_attention_over_int8_equals_attention_over_its_scaled_values(tiny):
    """The scales act outside the products: the same as products with scaled keys and values."""
    int8 = empty_cache(tiny, S, G, TP, SLOTS, jnp.dtype("float32"), "int8")
    keys = jax.random.split(jax.random.key(1), 7)
    K, N, H = tiny.num_kv_heads, tiny.num_heads, tiny.head_dim
    prompt = lambda key: jax.random.normal(key, (S, TP, K, H))
    for layer in range(tiny.num_layers):
        int8 = int8.with_prompts(layer, jnp.arange(S), prompt(keys[0]), prompt(keys[1]))
    plain = dataclasses.replace(int8, layers=tuple(Layer(*map(wide_of, layer)) for layer in int8.layers))
    token = lambda key, heads: jax.random.normal(key, (S * G, 1, heads, H))
    q, k, v = token(keys[2], N), token(keys[3], K), token(keys[4], K)
    attend = decode(jnp.int32(2), jnp.ones((S, G), jnp.int32))
    rounded = lambda x: wide(like(zeros(x.shape, jnp.float32, "int8"), x))
    ours, after = attend(1, q, k, v, int8)
    theirs, _ = attend(1, q, rounded(k), rounded(v), plain)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    written = after.layers[1].own_k
    np.testing.assert_allclose(
        written.values[..., 2] * written.scale[..., 2, None], rounded(k).reshape(S, G, K, H), atol=1e-6
    )
    assert not np.asarray(written.values[..., :2]).any()
    assert not np.asarray(after.layers[0].own_k.values).any()
