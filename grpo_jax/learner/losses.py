"""The objective's pieces: small pure functions of log-probs, advantages and masks, each formula once.

Letters: l log-probs under the current weights, o under those that sampled, f under the reference, all [B,Tc]
float32 at the sampling temperature; A advantages [B]; m mask [B,Tc], 1 for sampled tokens with the end-of-sequence
token included. The loss of a step is

    sum_b w_b * sum_t m_bt * (policy_bt + beta * kl_bt)

with row weights w that are known before the rows are split into micro-batches: that is why the split changes
nothing.
"""

import jax.numpy as jnp
from jax import Array


def importance_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """r = exp(l - o) [B,Tc], and 1 where the mask is 0, so that padding can neither overflow nor become NaN."""
    return jnp.exp(jnp.where(mask > 0, logprobs - old_logprobs, 0.0))


def clipped_policy_loss(ratio: Array, advantages: Array, epsilon_low: float, epsilon_high: float) -> Array:
    """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), [B,Tc].

    PPO (arXiv:1707.06347, equation 7) with the asymmetric range of DAPO (arXiv:2503.14476, equation 8).
    """
    A = advantages[:, None]
    return -jnp.minimum(ratio * A, jnp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * A)


def k3_divergence(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """exp(f - l) - (f - l) - 1, [B,Tc]: unbiased for KL(policy, reference) and never negative.

    Schulman 2020, "Approximating KL divergence"; DeepSeekMath, equation 4. Zero where the mask is 0.
    """
    gap = jnp.where(mask > 0, ref_logprobs - logprobs, 0.0)
    return jnp.expm1(gap) - gap


def row_weights(mask: Array, loss_type: str, max_length: int, mean_tokens: Array | None = None) -> Array:
    """w [B] for a mini-batch of B rows, so that sum_b w_b sum_t m_bt x_bt is

    - `grpo`: the mean over rows of each row's mean (DeepSeekMath, equation 3);
    - `bnpo`: the mean over the mini-batch's tokens;
    - `dr_grpo`: the sum over B * max_length (Dr. GRPO, arXiv:2503.20783, section 3.2);
    - `dapo`: the sum over `mean_tokens`, the tokens of the whole rollout divided by its number of mini-batches
      (DAPO, equation 8, as TRL spreads it over the updates of a rollout).
    """
    rows, tokens = mask.shape[0], mask.sum(-1)
    if loss_type == "grpo":
        return 1.0 / (rows * jnp.maximum(tokens, 1.0))
    if loss_type == "dr_grpo":
        return jnp.full(rows, 1.0 / (rows * max_length))
    total = tokens.sum() if loss_type == "bnpo" or mean_tokens is None else mean_tokens
    return jnp.full(rows, 1.0) / jnp.maximum(total, 1.0)
