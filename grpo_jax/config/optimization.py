"""Settings of the learner: objective, optimizer, adapters, memory.

The formulas are in `learner/`. Names and defaults are TRL's wherever TRL has the setting.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Decay, Mapped, Names, Numbers, Positive, Share
from grpo_jax.config.optimizer_names import Optimizer, ours

LossType = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo", "reinforce"]
SamplerCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class LossSettings(Settings):
    """Loss."""

    loss_type: LossType = "dapo"
    """The policy loss. grpo, dapo, bnpo and dr_grpo clip the probability ratio and differ in how tokens are averaged:
    by row (grpo), over all tokens (dapo, bnpo), or by a constant (dr_grpo); docs/objectives.md has the others."""
    importance_sampling_level: Literal["token", "sequence", "trajectory"] = "token"
    """The probability ratio: one a token, their geometric mean over the sequence (GSPO), or their product (RLOO)."""
    epsilon: Share = 0.2
    """The probability ratio is clipped below at 1 - epsilon."""
    epsilon_high: float | None = Field(None, ge=0)
    """The probability ratio is clipped above at 1 + epsilon_high; none: epsilon. With cispo: the largest weight."""
    delta: float | None = Field(None, gt=0)
    """Second upper bound on the ratio, for negative advantages, too (two-sided clipping); none: no bound."""
    sapo_temperature_pos: float = Field(1.0, gt=0)
    """Temperature of sapo's soft gate for positive advantages."""
    sapo_temperature_neg: float = Field(1.05, gt=0)
    """Temperature of sapo's soft gate for the other advantages."""
    vespo_k_pos: float = Field(2.0, ge=0)
    """vespo, positive advantages: exponent that lowers the weight of completions that became less likely."""
    vespo_lambda_pos: float = Field(3.0, ge=0)
    """vespo, positive advantages: rate that lowers the weight of completions that became more likely."""
    vespo_k_neg: float = Field(3.0, ge=0)
    """vespo, negative advantages: exponent that lowers the weight of completions that became less likely."""
    vespo_lambda_neg: float = Field(2.0, ge=0)
    """vespo, negative advantages: rate that lowers the weight of completions that became more likely."""
    num_iterations: Positive = 1
    """Number of passes over each rollout."""
    num_minibatches: Positive = 1
    """Number of optimizer steps in one pass over a rollout."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut at max_completion_length out of the loss."""
    top_entropy_quantile: float = Field(1.0, gt=0, le=1)
    """Train only on this share of the tokens, those with the highest entropy; 1: all tokens."""
    off_policy_mask_threshold: float | None = Field(None, gt=0)
    """Leave out completions with a negative advantage whose tokens became less likely by more than this on average, in
    nats (DeepSeek-V3.2); none: keep them."""
    skip_zero_advantages: bool = True
    """Skip rows that cannot change the weights, such as those of groups whose rewards are all equal."""
    share_prompts: bool = False
    """Compute each prompt once in scoring and update, not once for each of its completions. The first step checks the
    result against the plain form. Completions then use xla attention."""
    auto_micro_batch: bool = False
    """Choose micro_batch_size by the memory that the compiler reports: the mini-batch, a half of it, a quarter, ...; on
    devices that report no limit, such as CPUs, the mini-batch."""
    length_buckets: Positive = 1
    """Number of padded widths for completions, each half of the next. Rows are sorted by length, so that short ones are
    not padded to the longest. Each width compiles one more program."""


class AdvantageSettings(Settings):
    """Advantages."""

    advantage_estimator: Literal["group", "leave_one_out", "reinforce_plus_plus"] = "group"
    """The baseline: the group's mean, the mean of the other completions in it (RLOO), or the mean over all tokens."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group's rewards, of the batch's, or not at all."""
    reward_weights: Numbers | None = None
    """One weight for each reward function; none: 1 each."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Standardise the sum of the rewards, or each reward function before they are summed (GDPO)."""
    overlong_buffer: Count = 0
    """Tokens before max_completion_length over which a penalty grows from 0 to -1 (DAPO); 0: no penalty."""
    advantage_clip: float | None = Field(None, gt=0)
    """Clip advantages to plus and minus this; none: do not clip."""
    gradient_samples: Count = 0
    """Train on the first so many completions of each group; the others count in its baseline; 0: train on all."""

    @field_validator("scale_rewards", mode="before")
    @classmethod
    def _boolean_scale(cls, value: Any) -> Any:
        """TRL also takes true (group) and false (none) here."""
        known = {"true": "group", "false": "none"}
        return known.get(str(value).lower(), value)


class DivergenceSettings(Settings):
    """Divergence from the starting model."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the starting model; 0: no divergence, and no reference model in memory."""
    reference_memory: Literal["device", "host"] = "device"
    """Where the reference model is kept: on the devices, or in host memory, from which one layer at a time is copied.
    No effect with adapters: the reference is then the model without them."""
    sync_ref_model: bool = False
    """Let the reference follow the policy (TR-DPO): with ref_model_mixup_alpha, every ref_model_sync_steps updates."""
    ref_model_mixup_alpha: Share = 0.6
    """Share of the policy in the new reference; the rest is the reference as it was."""
    ref_model_sync_steps: Positive = 512
    """Number of updates of the weights from one synchronisation of the reference to the next."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator (Schulman 2020): k1 is the log-ratio, k2 half its square, k3 unbiased and never negative."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the divergence to the loss, or subtract it from the rewards."""
    use_bias_correction_kl: bool = True
    """Multiply the divergence by the probability ratio: its gradient is then unbiased off-policy, too."""


class EntropySettings(Settings):
    """Entropy."""

    log_entropy: bool = False
    """Log the policy's entropy (takes some time and memory)."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus, the mean over tokens; 0: no bonus."""
    use_adaptive_entropy: bool = False
    """Raise entropy_coef after updates with an entropy below entropy_target, lower it after the others (Skywork)."""
    entropy_coef_min: float = Field(0.0, ge=0)
    """Lower bound of the adaptive entropy_coef."""
    entropy_coef_max: float = Field(1.0, ge=0)
    """Upper bound of the adaptive entropy_coef."""
    entropy_coef_delta: float = Field(0.005, gt=0)
    """Change of the adaptive entropy_coef after each update."""
    entropy_target: float = Field(0.2, ge=0)
    """Target entropy of use_adaptive_entropy, in nats a token; above it there is no bonus."""


class SamplerSettings(Settings):
    """Correction for the sampler."""

    sampler_correction: SamplerCorrection = "none"
    """Importance weights between learner and sampler, by token or by sequence; with int8 rollouts: token_truncate."""
    sampler_correction_max: float | None = Field(3.0, gt=0)
    """Upper bound of these weights: above it truncate clips to the bound, mask sets 0; none: no bound."""
    sampler_correction_min: float | None = Field(None, ge=0)
    """Lower bound of these weights, applied in the same way; none: no bound."""


class ObjectiveSettings(
    LossSettings, AdvantageSettings, DivergenceSettings, EntropySettings, SamplerSettings
):
    """Objective."""

    idle_settings_pass: ClassVar[bool] = False


class OptimizerSettings(Settings):
    """Optimizer."""

    optim: Optimizer = "adamw"
    """The optimizer. adafactor keeps the second moments of a matrix as two vectors, lion and muon keep one moment of a
    weight instead of two, sgd none; muon steps the layers' matrices, and AdamW the other weights with it."""
    learning_rate: float = Field(1e-6, gt=0)
    """The peak learning rate."""
    lr_scheduler_type: Literal[
        "constant",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    """Schedule after the warm-up: constant, falling to 0 at the last step, or another one of transformers."""
    lr_scheduler_kwargs: Mapped | None = None
    """Options of the schedule, such as {min_lr: 1e-7}; they count updates of the weights."""

    @field_validator("optim", mode="before")
    @classmethod
    def _names_of_transformers(cls, value: Any) -> Any:
        return ours(value)

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _constant_has_its_warmup(cls, value: Any) -> Any:
        """TRL has another name for constant when a warm-up comes before it."""
        return "constant" if value == "constant_with_warmup" else value

    warmup_steps: Count = 0
    """Number of steps over which the learning rate rises from 0."""
    warmup_ratio: Share = 0.0
    """warmup_steps as a share of max_steps."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Scale gradients with a larger norm down to it; 0: never."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta1: Decay = 0.9
    """Decay of Adam's first moment; lion's first beta."""
    adam_beta2: Decay = 0.999
    """Decay of Adam's second moment; lion's second beta."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator of Adam's step."""
    adam_moments: Literal["float32", "bfloat16"] = "float32"
    """Type of the moments; bfloat16 uses stochastic rounding, so that they are right on average."""


class AdapterSettings(Settings):
    """LoRA."""

    adapters_may_follow: ClassVar[bool] = False  # beside the settings

    lora_r: Count = 0
    """Rank of the adapters (16 is usual, with a learning_rate of 1e-5); only they are trained; 0: train all weights."""
    lora_alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by lora_alpha / lora_r."""
    lora_dropout: Decay = 0.0
    """Share of an adapter's inputs that updates leave out at random; the masks depend on micro_batch_size, too."""
    use_rslora: bool = False
    """Scale adapters by lora_alpha / sqrt(lora_r) instead."""
    lora_target_modules: Names = Field(["all-linear"])
    """Layers with adapters: all-linear, or some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj."""
    base_weights: Literal["auto", "int8", "nf4"] = "auto"
    """Type of the frozen weights under the adapters: dtype, or 8 or 4 bits (QLoRA). Sampling uses the same weights."""


class MemorySettings(Settings):
    """Memory."""

    micro_batch_size: Count = 0
    """Rows computed at a time, over all devices. Fewer need less memory and give the same update; 0: the mini-batch."""
    logprob_chunk: Positive = 1024
    """Number of tokens whose logits a device holds at a time; at least one for each row of a micro-batch."""
    gradient_checkpointing: Literal["none", "dots", "full", "offload"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products (dots), whole layers, or whole layers with
    their inputs kept in host memory (offload). true means full, false means none."""

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _as_trl_says(cls, value: Any) -> Any:
        return {"true": "full", "false": "none"}.get(str(value).lower(), value)
