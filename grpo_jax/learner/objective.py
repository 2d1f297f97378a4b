"""The objective: combines the pieces of `losses.py` and its neighbours as the settings say."""

from dataclasses import KW_ONLY, dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.learner.corrections import off_policy_mask, sampler_ratio
from grpo_jax.learner.divergences import ESTIMATORS
from grpo_jax.learner.entropy import NO_BONUS, EntropyBonus, EntropyControl, high_entropy_mask
from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.losses import (
    CLIPPED,
    bounded_product,
    bounded_ratio,
    cispo_loss,
    clipped_loss,
    importance_ratio,
    masked_gap,
    reinforce_loss,
    sapo_loss,
    vespo_weight,
)
from grpo_jax.learner.normalization import row_weights
from grpo_jax.learner.row_metrics import (
    RowSums,
    clip_mean,
    clip_metrics,
    row_means,
    sampling_metrics,
    sampling_rows,
    sum_tokens,
    token_mean,
)

Metrics = dict[str, Array]  # scalars


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The rows of one update. A field that is None is absent, and nothing is computed for it."""

    rows: Rows
    advantages: Array  # [B] float32, or [B,Tc] of single tokens
    _: KW_ONLY
    sampler_logprobs: Array | None = None  # [B,Tc] as the sampler recorded them
    old_logprobs: Array | None = None  # [B,Tc]; None: this is the rollout's only update, so old = current
    ref_logprobs: Array | None = None  # [B,Tc]; None: no KL term
    on_policy: Array | None = (
        None  # [B] bool; False: sampled by older weights; old is what the sampler recorded
    )
    mean_tokens: Array | None = None  # [] tokens of the rollout over its mini-batches
    ends: Array | None = None  # [K] int32, which micro-batches to compute in which width; None: all in full
    weights: Array | None = None  # [B], by `weigh`
    bonus: Array | None = None  # [] weight of the entropy bonus, by `weigh`
    entropy_mask: Array | None = None  # [B,Tc], when it needs more rows than a micro-batch's own


@dataclass(frozen=True)
class GRPO:
    """Every objective of the family; the defaults are TRL's. See `losses.py` for the whole formula."""

    loss_type: str = "dapo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    _: KW_ONLY
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    max_length: int = 0
    level: str = "token"
    delta: float | None = None
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)  # where A > 0, elsewhere
    vespo_positive: tuple[float, float] = (2.0, 3.0)  # k and lambda where A >= 0
    vespo_negative: tuple[float, float] = (3.0, 2.0)
    kl_estimator: str = "k3"
    bonus: EntropyBonus = NO_BONUS
    top_entropy_quantile: float = 1.0
    off_policy_threshold: float | None = None
    sampler_mode: str = "none"
    sampler_bounds: tuple[float | None, float | None] = (None, 3.0)

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss itself uses the entropy."""
        return self.bonus.is_on or self.masks_entropy

    @property
    def masks_entropy(self) -> bool:
        """Whether only the tokens of highest entropy count."""
        return self.top_entropy_quantile < 1

    @property
    def ignores_zero_advantages(self) -> bool:
        """Whether a row with advantage 0 has no gradient, because the loss has no other term."""
        return self.beta == 0 and not self.bonus.is_on

    def weigh(self, batch: Batch, control: EntropyControl | None = None) -> Batch:
        """The batch with its rows' weights [B] and the bonus's: to be called on a whole mini-batch."""
        weights = row_weights(batch.rows.mask, self.loss_type, self.max_length, batch.mean_tokens)
        if not self.bonus.is_on:
            return replace(batch, weights=weights)
        weight = self.bonus.weight(control)
        counted = batch.entropy_mask if self.masks_entropy else batch.rows.mask
        if counted is not None:
            weight = weight / jnp.maximum(counted.sum(), 1.0)
        return replace(batch, weights=weights, bonus=weight)

    def with_entropy_mask(self, batch: Batch, entropy: Array) -> Batch:
        """The batch with the mask [B,Tc] that the entropies [B,Tc] of all its rows make."""
        mask = high_entropy_mask(entropy, batch.rows.mask, self.top_entropy_quantile)
        return replace(batch, entropy_mask=mask)

    def loss(self, logprobs: Array, entropy: Array | None, batch: Batch) -> tuple[Array, RowSums]:
        """The loss [] of weighted rows, and the sums to log, from the current log-probs and entropies [B,Tc]."""
        assert batch.weights is not None
        t = self._terms(logprobs, batch)
        entropy = None if entropy is None else jnp.where(t.mask > 0, entropy, 0.0)
        chosen = self._chosen_tokens(entropy, batch)  # [B,Tc]; None: all
        kept = self._kept_rows(t, batch)  # [B,1] or [B,Tc]; None: all
        divergence = self._divergence(t, batch)  # [B,Tc]; None: no reference
        per_token = self._policy_loss(t)
        for factor in (kept, chosen, self._sampler_factor(t)):
            per_token = per_token if factor is None else bounded_product(per_token, factor)
        if divergence is not None:
            per_token = per_token + self.beta * divergence
        policy_loss = batch.weights * sum_tokens(per_token, t.mask)  # [B]
        logged = self._logged(t, entropy, chosen, kept, divergence, batch)
        if batch.bonus is None:
            return policy_loss.sum(), logged
        logged.sums["policy_loss"] = policy_loss
        return policy_loss.sum() - self._bonus(logged, chosen, batch), logged

    def metrics(self, rows: RowSums, batch: Batch) -> Metrics:
        """TRL's metrics of an update, and ours, from what all rows of its `batch` logged."""
        mask, sums, computed = batch.rows.mask, rows.sums, rows.computed
        found: Metrics = {}
        for name in ("kl", "entropy"):
            if name in sums:
                found[name] = token_mean(sums[name], mask, computed)
        if self.loss_type in CLIPPED:
            per_row = self.level != "token"
            found |= clip_metrics(sums["clipped_low"], sums["clipped_high"], mask, per_row=per_row)
        if "cispo_clipped" in sums:
            found["cispo_clip_ratio"] = clip_mean(sums["cispo_clipped"], mask, per_row=self.level != "token")
        if "phi" in sums:
            found["vespo/phi_seq_mean"] = sums["phi"].sum() / jnp.maximum(computed.sum(), 1)
        if "dropped" in sums:
            found["off_policy_dropped"] = token_mean(sums["dropped"], mask)  # ours
        if "policy_loss" in sums:
            found["policy_loss"] = sums["policy_loss"].sum()
        return found | sampling_metrics(rows)

    def effective_entropy(self, rows: RowSums) -> Array:
        """Mean entropy [] over the tokens that the bonus acts on."""
        return rows.sums["bonus_entropy"].sum() / jnp.maximum(rows.sums["bonus_tokens"].sum(), 1.0)

    def _terms(self, logprobs: Array, batch: Batch) -> "_Terms":
        mask = batch.rows.mask
        logprobs = jnp.where(mask > 0, logprobs, 0.0)
        old = jax.lax.stop_gradient(logprobs) if batch.old_logprobs is None else batch.old_logprobs
        sampler = old if batch.sampler_logprobs is None else batch.sampler_logprobs
        if batch.on_policy is not None:
            old = jnp.where(batch.on_policy[:, None], old, sampler)
        log_ratio = masked_gap(logprobs, old, mask)
        return _Terms(
            mask=mask,
            A=_seen_advantages(batch.advantages, mask),
            logprobs=logprobs,
            sampler=sampler,
            log_ratio=log_ratio,
            ratio=importance_ratio(log_ratio, mask, self.level),
            correction=sampler_ratio(old, sampler, mask, self.sampler_mode, *self.sampler_bounds),
        )

    def _policy_loss(self, t: "_Terms") -> Array:
        if self.loss_type == "cispo":
            return cispo_loss(t.ratio, t.A, t.logprobs, self.epsilon_high)
        if self.loss_type == "sapo":
            return sapo_loss(t.ratio, t.A, *self.sapo_temperatures)
        if self.loss_type == "vespo":
            return -self._phi(t) * t.A * t.logprobs
        if self.loss_type == "reinforce":
            return reinforce_loss(t.A, t.logprobs)
        return clipped_loss(t.ratio, t.A, self.epsilon_low, self.epsilon_high, self.delta)

    def _phi(self, t: "_Terms") -> Array:
        correction = None if self.sampler_mode == "none" else t.correction
        return vespo_weight(t.log_ratio, t.A, t.mask, self.vespo_positive, self.vespo_negative, correction)

    def _sampler_factor(self, t: "_Terms") -> Array | None:
        """None for VESPO, whose weight already includes it."""
        return None if self.sampler_mode == "none" or self.loss_type == "vespo" else t.correction

    def _kept_rows(self, t: "_Terms", batch: Batch) -> Array | None:
        if self.off_policy_threshold is None:
            return None
        now = jax.lax.stop_gradient(t.logprobs)
        return off_policy_mask(t.A, now, t.sampler, t.mask, self.off_policy_threshold)

    def _chosen_tokens(self, entropy: Array | None, batch: Batch) -> Array | None:
        if not self.masks_entropy or batch.entropy_mask is not None:
            return batch.entropy_mask
        assert entropy is not None
        return high_entropy_mask(jax.lax.stop_gradient(entropy), batch.rows.mask, self.top_entropy_quantile)

    def _divergence(self, t: "_Terms", batch: Batch) -> Array | None:
        if batch.ref_logprobs is None:
            return None
        estimate = ESTIMATORS[self.kl_estimator](t.logprobs, batch.ref_logprobs, t.mask)
        return bounded_product(estimate, t.ratio) if self.use_bias_correction_kl else estimate

    def _bonus(self, logged: RowSums, chosen: Array | None, batch: Batch) -> Array:
        """coef times the mean entropy over the whole mini-batch's tokens that count, this part's share of it."""
        assert batch.bonus is not None
        share = logged.sums["bonus_entropy"].sum() * batch.bonus
        if chosen is None or batch.entropy_mask is not None:
            return share  # `weigh` has already divided by their number
        return share / jnp.maximum(chosen.sum(), 1.0)

    def _logged(
        self,
        t: "_Terms",
        entropy: Array | None,
        chosen: Array | None,
        kept: Array | None,
        divergence: Array | None,
        batch: Batch,
    ) -> RowSums:
        """Rows' figures; those that are means in the end as sums over tokens."""
        total = lambda x: sum_tokens(x, t.mask)
        sums = self._clip_counts(t)
        if divergence is not None:
            sums["kl"] = total(divergence)
        if kept is not None:
            sums["dropped"] = total(1 - kept)
        if entropy is not None:
            sums["entropy"] = total(entropy)
        if batch.bonus is not None:
            assert entropy is not None
            tokens = t.mask if chosen is None else chosen
            sums |= {"bonus_entropy": (entropy * tokens).sum(-1), "bonus_tokens": tokens.sum(-1)}
        return RowSums(sums, {}, {}, jnp.ones(len(t.mask), bool)) | sampling_rows(
            t.logprobs, batch.sampler_logprobs, t.correction, t.mask, batch.on_policy
        )

    def _clip_counts(self, t: "_Terms") -> dict[str, Array]:
        total = lambda x: sum_tokens(x, t.mask)
        if self.loss_type in CLIPPED:
            ratio = bounded_ratio(t.ratio, self.delta)
            return {
                "clipped_low": total((ratio < 1 - self.epsilon_low) & (t.A < 0)),
                "clipped_high": total((ratio > 1 + self.epsilon_high) & (t.A > 0)),
            }
        if self.loss_type == "cispo":
            return {"cispo_clipped": total((t.ratio > self.epsilon_high) & (t.A > 0))}
        if self.loss_type != "vespo":
            return {}
        phi = self._phi(t)  # [B,Tc] when tokens have advantages of their own
        return {"phi": phi[:, 0] if phi.shape[-1] == 1 else row_means(total(phi), t.mask)}


def _seen_advantages(advantages: Array, mask: Array) -> Array:
    """[B,1] or [B,Tc], 0 where masked: values there reach neither the loss nor its gradient."""
    if advantages.ndim == 1:
        advantages, mask = advantages[:, None], mask.max(-1, keepdims=True)
    return jnp.where(mask > 0, advantages, 0.0)


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """The terms that all parts of the loss share; letters as in `losses.py`."""

    mask: Array  # [B,Tc]
    A: Array  # [B,1] or [B,Tc]
    logprobs: Array  # [B,Tc]
    sampler: Array  # [B,Tc], old log-probs where the sampler recorded none
    log_ratio: Array  # [B,Tc]
    ratio: Array  # [B,Tc] or [B,1]
    correction: Array  # [B,Tc] or [B,1], the sampler's


@dataclass(frozen=True)
class SFT:
    """The negative log-likelihood of the completions, averaged over the batch's tokens."""

    needs_entropy = masks_entropy = False

    def weigh(self, batch: Batch, control: EntropyControl | None = None) -> Batch:
        """Every row weighs one over the batch's tokens."""
        return replace(batch, weights=row_weights(batch.rows.mask, "bnpo", 0))

    def loss(self, logprobs: Array, entropy: Array | None, batch: Batch) -> tuple[Array, RowSums]:
        """The loss [] of weighted rows, and the sums to log."""
        assert batch.weights is not None
        nll = -sum_tokens(logprobs, batch.rows.mask)
        sums = {"nll": nll}
        return (batch.weights * nll).sum(), RowSums(sums, {}, {}, jnp.ones(len(nll), bool))

    def metrics(self, rows: RowSums, batch: Batch) -> Metrics:
        """`nll`, nats a token."""
        return {"nll": token_mean(rows.sums["nll"], batch.rows.mask)}
