"""Weights with their outputs first are the same weights: same products, same tokens looked up, same forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.families import rows
from grpo_jax.models.matrices import product
from grpo_jax.models.outputs_first import OutputsFirst, with_outputs_first
from grpo_jax.models.quantized import dequantize, quantize
from grpo_jax.models.transformer import by_layer, head_logits, hidden_states, init


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tiny):
    cfg = dataclasses.replace(tiny, tie_word_embeddings=request.param)
    return cfg, init(cfg, jax.random.key(3))


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 3), (0,)), ((5, 3), (1,)), ((4, 2, 6), (0, 1)), ((4, 2, 6), (0,))]
)
def test_a_product_with_outputs_first_is_the_same(shape, axes):
    w = jax.random.normal(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (2, 3, *(shape[axis] for axis in axes)))
    wanted = np.tensordot(np.asarray(x, np.float64), np.asarray(w), (range(2, x.ndim), axes))
    turned = OutputsFirst(jnp.moveaxis(w, axes, range(-len(axes), 0)))
    np.testing.assert_allclose(product(x, turned, axes), wanted, atol=1e-5)
    np.testing.assert_allclose(product(x, w, axes), wanted, atol=1e-5)


def test_every_matrix_of_a_model_is_stored_outputs_first(model):
    cfg, params = model
    turned = with_outputs_first(params)
    for row in rows(cfg):
        before, after = params, turned
        for key in row.path:
            before, after = before[key], after[key]
        assert isinstance(after, OutputsFirst) == (len(row.theirs) == 2)
        if isinstance(after, OutputsFirst):  # what their files hold, but for the split into heads
            theirs = [row.to_theirs(np.asarray(x), cfg) for x in (before if row.stacked else [before])]
            np.testing.assert_array_equal(np.asarray(after.values).reshape(-1), np.stack(theirs).reshape(-1))
        else:
            assert after is before


def test_an_embedding_is_not_copied(model):
    _, params = model
    assert with_outputs_first(params)["embed"]["embedding"].values is params["embed"]["embedding"]
    assert dequantize(with_outputs_first(params)["embed"]["embedding"]) is params["embed"]["embedding"]


def test_int8_weights_are_left_as_they_are(tiny, tiny_params):
    int8 = quantize(tiny_params, jnp.float32)
    assert jax.tree.structure(with_outputs_first(int8)) == jax.tree.structure(int8)


def test_the_forward_is_the_same_with_outputs_first(model):
    cfg, params = model
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, cfg.vocab_size)

    @jax.jit
    def logits(params):
        positions = jnp.broadcast_to(jnp.arange(7), tokens.shape)
        return head_logits(cfg, params, hidden_states(cfg, params, tokens, positions)[0])

    turned = jax.jit(lambda params: by_layer(with_outputs_first(params)))(params)
    np.testing.assert_allclose(logits(turned), logits(params), atol=2e-5)
