"""Corrections for completions sampled with older weights or other arithmetic. Letters as in `losses.py`."""

import jax.numpy as jnp
from jax import Array

from grpo_jax.learner.losses import bounded_exp, masked_gap

MODES = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sampler_ratio(
    old_logprobs: Array,
    sampler_logprobs: Array,
    mask: Array,
    mode: str = "none",
    lowest: float | None = None,
    largest: float | None = None,
) -> Array:
    """The weight that corrects for a sampler which is not the scored policy: exp(o - sampler's), without gradient.

    [B,Tc] for `none` and the `token_` modes; [B,1], exp of the row's sum, for the `sequence_` modes. `truncate`
    clips it to [lowest, largest], `mask` sets it to 0 outside. Never larger than exp(80). 1 where masked.
    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; TRL's
    `vllm_importance_sampling_mode`.
    """
    gap = masked_gap(old_logprobs, sampler_logprobs, mask)
    ratio = bounded_exp(gap.sum(-1, keepdims=True) if mode.startswith("sequence") else gap)
    if mode.endswith("truncate"):
        return jnp.clip(ratio, lowest, largest)
    if mode.endswith("mask"):
        outside = (ratio < (-jnp.inf if lowest is None else lowest)) | (
            ratio > (jnp.inf if largest is None else largest)
        )
        return jnp.where(outside, 0.0, ratio)
    return ratio


def off_policy_mask(
    A: Array, logprobs: Array, sampler_logprobs: Array, mask: Array, threshold: float
) -> Array:
    """1 for rows to keep, 0 for bad completions (A < 0) that are too far off-policy, shape of A.

    Far: the mean over the row's tokens of sampler's log-prob - l above `threshold` (DeepSeek-V3.2,
    arXiv:2512.02556, section 3.1).
    """
    gap = masked_gap(sampler_logprobs, logprobs, mask).sum(-1, keepdims=True)
    mean = gap / jnp.maximum(mask.sum(-1, keepdims=True), 1.0)
    return ((A >= 0) | (mean <= threshold)).astype(jnp.float32)
