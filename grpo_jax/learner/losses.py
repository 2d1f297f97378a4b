"""Policy losses and the probability ratios in them: small pure functions, each formula once.

Letters, here and in the other files of this room: l log-probs under the current weights, o under those that
sampled, f under the reference, all [B,Tc] float32 at the sampling temperature; r a ratio, [B,Tc] or [B,1]; A
advantages, [B,1] for one a row or [B,Tc]; m mask [B,Tc], 1 for sampled tokens, the end-of-sequence token included;
sg stops the gradient. The loss of an update is

    sum_b w_b * sum_t m_bt * (policy_bt * masks_bt + beta * kl_bt) - coef * mean entropy

with row weights w (`normalization.py`) that are computed before the rows are split into micro-batches, so that
the split does not change the loss.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # same loss, different row weights
LARGEST = 80.0  # exp(80) is finite in float32, exp(89) is not


def masked_gap(a: Array, b: Array, mask: Array) -> Array:
    """a - b [B,Tc], and 0 where the mask is 0, so that padding can neither overflow nor become NaN."""
    return jnp.where(mask > 0, a - b, 0.0)


def bounded_exp(x: Array) -> Array:
    """exp(x), clipped to [exp(-80), exp(80)], with gradient 0 outside: infinity times an advantage of 0 would be
    NaN."""
    return jnp.exp(jnp.clip(x, -LARGEST, LARGEST))


def bounded_product(x: Array, factor: Array) -> Array:
    """x * factor for a factor >= 0, clipped so that the product stays within exp(80): the product of two finite
    ratios may overflow."""
    room = math.exp(LARGEST) / jnp.maximum(jnp.abs(jax.lax.stop_gradient(x)), 1.0)
    return x * jnp.minimum(factor, room)


def importance_ratio(log_ratio: Array, mask: Array, level: str = "token") -> Array:
    """r from the log-ratio l - o [B,Tc] (0 where masked):

    - `token`: exp(l - o), [B,Tc] (PPO, arXiv:1707.06347, equation 6);
    - `sequence`: exp of its mean over the row's tokens, [B,1] (GSPO, arXiv:2507.18071, equation 7);
    - `trajectory`: exp of its sum, [B,1], the ratio of whole completions (RLOO, arXiv:2402.14740).
    """
    if level == "token":
        return bounded_exp(log_ratio)
    total = (log_ratio * mask).sum(-1, keepdims=True)
    if level == "sequence":
        total = total / jnp.maximum(mask.sum(-1, keepdims=True), 1.0)
    return bounded_exp(total)


def clip_with_gradient(x: Array, low: float, high: float) -> Array:
    """x clipped to [low, high]. At the bounds the gradient is 1, as in PyTorch (`jnp.clip` halves it there)."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def clipped_loss(
    ratio: Array, A: Array, epsilon_low: float, epsilon_high: float, delta: float | None = None
) -> Array:
    """-min(min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A), the shape of r A.

    PPO (arXiv:1707.06347, equation 7) with the asymmetric range of DAPO (arXiv:2503.14476, equation 8) and the
    second bound of INTELLECT-2 (arXiv:2505.07291), which limits the effect of a bad completion.
    """
    clipped = clip_with_gradient(ratio, 1 - epsilon_low, 1 + epsilon_high)
    return -jnp.minimum(bounded_ratio(ratio, delta) * A, clipped * A)


def bounded_ratio(ratio: Array, delta: float | None) -> Array:
    """min(r, delta); r itself without a delta."""
    return ratio if delta is None else clip_with_gradient(ratio, -math.inf, delta)


def cispo_loss(ratio: Array, A: Array, logprobs: Array, largest: float) -> Array:
    """-sg(min(r, largest)) A l, [B,Tc]: every token keeps its gradient, with a bounded weight.

    MiniMax-M1 (arXiv:2506.13585). `largest` is the bound itself, not 1 + epsilon.
    """
    return -jax.lax.stop_gradient(jnp.minimum(ratio, largest)) * A * logprobs


def sapo_loss(ratio: Array, A: Array, positive: float, negative: float) -> Array:
    """-A sigmoid(tau (r - 1)) 4 / tau, the shape of r A; tau is `positive` where A > 0 and `negative` elsewhere.

    A soft gate in place of the clip (SAPO, arXiv:2511.20347).
    """
    tau = jnp.where(A > 0, positive, negative)
    return -A * jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau


def vespo_weight(
    log_ratio: Array,
    A: Array,
    mask: Array,
    positive: tuple[float, float],
    negative: tuple[float, float],
    correction: Array | None = None,
) -> Array:
    """phi = exp(lam + k log w - lam w), shape of A, without gradient; (k, lam) is `positive` where A >= 0.

    log w is the sum over the row of clip(l - o, -20, 20), clipped to [log 1e-8, 20]; the sampler's `correction`
    [B,Tc] or [B,1] multiplies w. 0 where k and lam let it overflow (VESPO, arXiv:2602.10693).
    """
    lowest = math.log(1e-8)
    total = (jnp.clip(log_ratio, -20.0, 20.0) * mask).sum(-1, keepdims=True)
    if correction is not None:
        log_correction = jnp.clip(jnp.log(correction), lowest, 20.0)
        of_row = correction.shape[-1] == 1  # already summed over the row: count it once
        total = total + (log_correction if of_row else log_correction * mask).sum(-1, keepdims=True)
    log_w = jax.lax.stop_gradient(jnp.clip(total, lowest, 20.0))
    k = jnp.where(A >= 0, positive[0], negative[0])
    lam = jnp.maximum(jnp.where(A >= 0, positive[1], negative[1]), 1e-4)
    phi = jnp.exp(lam + k * log_w - lam * jnp.exp(log_w))
    return jnp.where(jnp.isfinite(phi), phi, 0.0)


def reinforce_loss(A: Array, logprobs: Array) -> Array:
    """-A l, [B,Tc]: no ratio, no clip (Williams 1992); with a group's other samples as the baseline Reinforce-Lite."""
    return -A * logprobs
