"""Rotary positions (Su et al. 2021, arXiv:2104.09864), with YaRN (Peng et al. 2023, arXiv:2309.00071)."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.models.config import ModelConfig, YarnConfig


def rotation_tables(cfg: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines `[..., H/2]` in float32 for integer `positions` `[...]`."""
    frequencies, amplitude = inverse_frequencies(cfg)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each pair (x[i], x[i + H/2]) of `x` `[B,T,N,H]` by its angle; `cos`, `sin` are `[B,T,H/2]`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def inverse_frequencies(cfg: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians per position `[H/2]` float32, and the factor on cosines and sines (1 without YaRN)."""
    wavelengths = cfg.rope_theta ** (np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim)
    if cfg.rope_scaling is None:
        return (1.0 / wavelengths).astype(np.float32), 1.0
    return _yarn(cfg, cfg.rope_scaling, wavelengths)


def _yarn(cfg: ModelConfig, yarn: YarnConfig, wavelengths: np.ndarray) -> tuple[np.ndarray, float]:
    """YaRN, section 3.2: high frequencies stay, low ones are divided by `factor`, with a ramp between; 3.4: the factor
    on cosines and sines."""
    low = max(math.floor(_dimension_turning(cfg, yarn, yarn.beta_fast)), 0)
    high = min(math.ceil(_dimension_turning(cfg, yarn, yarn.beta_slow)), cfg.head_dim - 1)
    ramp = (np.arange(cfg.head_dim // 2) - low) / max(high - low, 0.001)
    stretched = np.clip(ramp, 0.0, 1.0)  # share of each dimension that is interpolated
    frequencies = (1 - stretched) / wavelengths + stretched / (yarn.factor * wavelengths)
    amplitude = yarn.attention_factor
    if amplitude is None:
        amplitude = 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0
    return frequencies.astype(np.float32), amplitude


def _dimension_turning(cfg: ModelConfig, yarn: YarnConfig, turns: float) -> float:
    """The (fractional) dimension that makes `turns` full turns over the original context."""
    per_radian = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
    return cfg.head_dim * math.log(per_radian) / (2 * math.log(cfg.rope_theta))
