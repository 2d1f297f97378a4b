"""The divergence of the policy from the reference: Schulman's three estimators of KL(policy, reference).

Schulman 2020, "Approximating KL divergence". Letters as in `losses.py`.
"""

import jax.numpy as jnp
from jax import Array

from grpo_jax.learner.losses import LARGEST, masked_gap


def k1(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """l - f, [B,Tc], 0 where masked: unbiased, of either sign. As a loss term its expected gradient is 0 unless it
    is weighted by the ratio: use it in the reward."""
    return masked_gap(logprobs, ref_logprobs, mask)


def k2(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """(l - f)^2 / 2, [B,Tc], 0 where masked: biased, and its gradient is the divergence's own on policy."""
    return 0.5 * masked_gap(logprobs, ref_logprobs, mask) ** 2


def k3(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """exp(f - l) - (f - l) - 1, [B,Tc], 0 where masked: unbiased and never negative (DeepSeekMath,
    arXiv:2402.03300, equation 4)."""
    gap = jnp.clip(masked_gap(ref_logprobs, logprobs, mask), -jnp.inf, LARGEST)
    return jnp.expm1(gap) - gap


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
