"""What is minimised: a per-token loss and the weight of each row, and the metrics beside it."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.losses import clipped_policy_loss, importance_ratio, k3_divergence, row_weights

Means = dict[str, Array]  # per-token quantities [B,Tc] whose mean over the mask is logged
PerToken = Callable[[Array, "Batch"], tuple[Array, Means]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The rows of one update. Absent log-probs are None: nothing is computed for them."""

    rows: Rows
    advantages: Array  # [B] float32
    sampler_logprobs: Array | None = None  # [B,Tc] as the sampler recorded them
    old_logprobs: Array | None = None  # [B,Tc]; None: this is the rollout's only update, so old = current
    ref_logprobs: Array | None = None  # [B,Tc]; None: no KL term
    mean_tokens: Array | None = None  # [] tokens of the rollout over its mini-batches


@dataclass(frozen=True)
class GRPO:
    """Clipped ratio plus beta times the k3 divergence from the reference (DeepSeekMath, equation 3)."""

    loss_type: str = "dapo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    max_length: int = 0

    def weights(self, batch: Batch) -> Array:
        """w [B]; see `row_weights`."""
        return row_weights(batch.rows.mask, self.loss_type, self.max_length, batch.mean_tokens)

    def per_token(self, logprobs: Array, batch: Batch) -> tuple[Array, Means]:
        """Loss and metrics [B,Tc] from the current log-probs [B,Tc].

        With bias correction the divergence is multiplied by the ratio, which makes the gradient of the estimate
        the gradient of the divergence (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).
        """
        mask, A = batch.rows.mask, batch.advantages[:, None]
        old = jax.lax.stop_gradient(logprobs) if batch.old_logprobs is None else batch.old_logprobs
        ratio = importance_ratio(logprobs, old, mask)
        loss = clipped_policy_loss(ratio, batch.advantages, self.epsilon_low, self.epsilon_high)
        low, high = (ratio < 1 - self.epsilon_low) & (A < 0), (ratio > 1 + self.epsilon_high) & (A > 0)
        means = {
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
        }
        if batch.ref_logprobs is not None:
            divergence = k3_divergence(logprobs, batch.ref_logprobs, mask)
            divergence = divergence * ratio if self.use_bias_correction_kl else divergence
            loss, means["kl"] = loss + self.beta * divergence, divergence
        return loss, means


@dataclass(frozen=True)
class SFT:
    """The negative log-likelihood of the completions, averaged over the batch's tokens."""

    def weights(self, batch: Batch) -> Array:
        """w [B], one over the batch's tokens."""
        return row_weights(batch.rows.mask, "bnpo", 0)

    def per_token(self, logprobs: Array, batch: Batch) -> tuple[Array, Means]:
        """-l [B,Tc]."""
        return -logprobs, {"nll": -logprobs}


def sampler_gap(logprobs: Array, batch: Batch) -> Array:
    """|l - sampler's log-prob| [B,Tc]: rounding noise in float32, a measure of mismatch otherwise."""
    assert batch.sampler_logprobs is not None
    return jnp.abs(logprobs - batch.sampler_logprobs) * batch.rows.mask
