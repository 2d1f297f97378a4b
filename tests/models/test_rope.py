"""Rotary positions against transformers' own tables at published sizes, and the properties of rotation."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.config import PUBLISHED, YarnConfig
from grpo_jax.models.rope import inverse_frequencies, rotate, rotation_tables

YARN = YarnConfig(factor=4.0, original_max_position_embeddings=32768)


def transformers_table(cfg):
    pytest.importorskip("torch")
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling is not None:
        known = {k: v for k, v in vars(cfg.rope_scaling).items() if v is not None}
        rope |= {"rope_type": "yarn"} | known
    config = Qwen2Config(
        hidden_size=cfg.hidden_size,
        num_attention_heads=cfg.num_heads,
        head_dim=cfg.head_dim,
        max_position_embeddings=131072,
        rope_parameters=rope,
    )
    table = Qwen2RotaryEmbedding(config)
    return table.inv_freq.numpy(), table.attention_scaling


@pytest.mark.parametrize("size", ["0.5b", "7b"])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        YARN,
        dataclasses.replace(YARN, attention_factor=1.0),
        dataclasses.replace(YARN, factor=1.0),
        dataclasses.replace(YARN, factor=8.0, beta_fast=64.0, beta_slow=0.5),
        dataclasses.replace(YARN, original_max_position_embeddings=64),
    ],
    ids=["plain", "yarn", "own amplitude", "factor 1", "other betas", "short original"],
)
def test_frequencies_equal_transformers(size, scaling):
    cfg = dataclasses.replace(PUBLISHED[size], rope_scaling=scaling)
    frequencies, amplitude = inverse_frequencies(cfg)
    theirs, their_amplitude = transformers_table(cfg)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, theirs, rtol=2e-6)
    assert amplitude == pytest.approx(their_amplitude, rel=1e-6)


def test_amplitude_scales_cosines_and_sines():
    cfg = dataclasses.replace(PUBLISHED["0.5b"], rope_scaling=dataclasses.replace(YARN, attention_factor=1.5))
    cos, sin = rotation_tables(cfg, jnp.arange(9)[None])
    assert cos.shape == sin.shape == (1, 9, cfg.head_dim // 2)
    np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, rtol=1e-5)


def test_scores_depend_on_distance_alone():
    cfg = PUBLISHED["0.5b"]
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, cfg.head_dim)).astype(np.float32)

    def score(q_at, k_at):
        turn = lambda x, at: rotate(jnp.asarray(x), *rotation_tables(cfg, jnp.full((1, 1), at)))
        return float((turn(q, q_at) * turn(k, k_at)).sum())

    assert score(7, 3) == pytest.approx(score(507, 503), rel=1e-3)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-2)


def test_rotation_pairs_the_two_halves():
    """Position 0 leaves x alone; a quarter turn sends the first half to the second."""
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(rotate(x, jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4))), x)
    quarter = rotate(x, jnp.zeros((1, 1, 4)), jnp.ones((1, 1, 4)))
    np.testing.assert_array_equal(quarter[0, 0, 0], [-4, -5, -6, -7, 0, 1, 2, 3])


def test_half_precision_is_rotated_in_float32():
    """bfloat16 has 8 bits: position 1000 times a frequency would be off by radians."""
    cfg = PUBLISHED["0.5b"]
    x = np.random.default_rng(1).normal(size=(1, 1, 2, cfg.head_dim)).astype(np.float32)
    tables = rotation_tables(cfg, jnp.full((1, 1), 1000))
    half = rotate(jnp.asarray(x, jnp.bfloat16), *tables)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), rotate(jnp.asarray(x), *tables), atol=0.03)
