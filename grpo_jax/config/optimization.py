"""The learner's settings: what is minimised, by which steps, in how much memory.

The formulas are in `learner/`. Names and defaults are TRL's wherever TRL has the setting.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Decay, Names, Numbers, Positive, Share

LossType = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo", "reinforce"]
SamplerCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class LossSettings(Settings):
    """Loss."""

    loss_type: LossType = "dapo"
    """Clipped, and averaged by row (grpo), over all tokens (dapo, bnpo), or by a constant (dr_grpo); or another."""
    importance_sampling_level: Literal["token", "sequence", "trajectory"] = "token"
    """A probability ratio for each token, their mean over the sequence (GSPO), or the whole completion's (RLOO)."""
    epsilon: Share = 0.2
    """The probability ratio is clipped at 1 - epsilon ..."""
    epsilon_high: float | None = Field(None, ge=0)
    """... and at 1 + epsilon_high; none: the same as epsilon; with cispo it is the largest weight itself."""
    delta: float | None = Field(None, gt=0)
    """A second bound on the ratio, which holds where the advantage is negative too; none: no such bound."""
    sapo_temperature_pos: float = Field(1.0, gt=0)
    """How sharp sapo's soft gate is where the advantage is positive ..."""
    sapo_temperature_neg: float = Field(1.05, gt=0)
    """... and where it is not."""
    vespo_k_pos: float = Field(2.0, ge=0)
    """How strongly vespo holds back completions that became unlikely, where the advantage is positive ..."""
    vespo_lambda_pos: float = Field(3.0, ge=0)
    """... and those that became likely ..."""
    vespo_k_neg: float = Field(3.0, ge=0)
    """... and, where the advantage is negative, those that became unlikely ..."""
    vespo_lambda_neg: float = Field(2.0, ge=0)
    """... and those that became likely."""
    num_iterations: Positive = 1
    """Times that each rollout is trained on."""
    num_minibatches: Positive = 1
    """Optimizer steps that one pass over a rollout is divided into."""
    mask_truncated_completions: bool = False
    """Leave completions that reach max_completion_length without an end out of the loss."""
    top_entropy_quantile: float = Field(1.0, gt=0, le=1)
    """Train only on this share of the tokens, those of highest entropy; 1: on all."""
    off_policy_mask_threshold: float | None = Field(None, gt=0)
    """Leave out bad completions whose tokens became less likely by more nats on average than this; none: keep them."""
    skip_zero_advantages: bool = True
    """Do not compute rows that cannot change the weights, as those of groups whose rewards are all equal."""
    share_prompts: bool = False
    """Compute a prompt once for its completions in scoring and update, not once for each; checked against the plain
    form in the first step. Completions then attend by xla."""
    auto_micro_batch: bool = False
    """Compute as many rows at a time as fit by the compiler's word, the mini-batch or a half, a quarter, ... of it, in
    place of micro_batch_size; where a device reports no memory limit, as on CPU, all."""
    length_buckets: Positive = 1
    """Widths that completions of a micro-batch may have, each half of the next: rows are sorted by length, and short
    ones are computed without the padding of long ones. Each width is one more program to compile."""


class AdvantageSettings(Settings):
    """Advantages."""

    advantage_estimator: Literal["group", "leave_one_out", "reinforce_plus_plus"] = "group"
    """A reward's baseline: its group's mean, the mean of the others in it (RLOO), or the mean over all tokens."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of their group, of the whole batch, or not at all."""
    reward_weights: Numbers | None = None
    """One weight for each reward function; none: 1 each."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Standardise the sum of the rewards, or each reward function by itself before the sum (GDPO)."""
    overlong_buffer: Count = 0
    """A punishment that grows from 0 to -1 over the last so many tokens before max_completion_length; 0: none."""
    advantage_clip: float | None = Field(None, gt=0)
    """Advantages are held within plus and minus this; none: they are left as they are."""
    gradient_samples: Count = 0
    """Completions of each group that are trained on, the first ones; the others are its baseline; 0: all of them."""

    @field_validator("scale_rewards", mode="before")
    @classmethod
    def _boolean_scale(cls, value: Any) -> Any:
        """TRL also takes true (group) and false (none) here."""
        known = {"true": "group", "false": "none"}
        return known.get(str(value).lower(), value)


class DivergenceSettings(Settings):
    """Divergence from the starting model."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the starting model; 0: none, and no second model is kept."""
    reference_memory: Literal["device", "host"] = "device"
    """Where the starting model is kept: on the devices, or in the hosts' memory, whence its layers come one by one.
    With adapters next to nothing is kept, and this changes nothing."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated (Schulman 2020): the log-ratio, half its square, or the one that is never negative."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add it to the loss, or take it off the rewards."""
    use_bias_correction_kl: bool = True
    """Weigh the KL divergence by the probability ratio: its gradient is unbiased in later updates too."""


class EntropySettings(Settings):
    """Entropy."""

    log_entropy: bool = False
    """Compute and log the policy's entropy (costs some time and memory)."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the mean entropy of a token as a bonus, which keeps the policy from settling early; 0: none."""
    use_adaptive_entropy: bool = False
    """Raise entropy_coef after updates with an entropy below entropy_target, lower it after the others."""
    entropy_coef_min: float = Field(0.0, ge=0)
    """entropy_coef is never lowered below this ..."""
    entropy_coef_max: float = Field(1.0, ge=0)
    """... nor raised above this."""
    entropy_coef_delta: float = Field(0.005, gt=0)
    """How much entropy_coef changes after an update."""
    entropy_target: float = Field(0.2, ge=0)
    """Entropy of a token, in nats, that use_adaptive_entropy aims at; above it there is no bonus."""


class SamplerSettings(Settings):
    """Correction for the sampler."""

    sampler_correction: SamplerCorrection = "none"
    """Weigh tokens or completions by how likely the scored policy finds them; int8 rollouts: token_truncate."""
    sampler_correction_max: float | None = Field(3.0, gt=0)
    """The largest such weight: above it truncate holds it there, and mask makes it 0; none: no such bound."""
    sampler_correction_min: float | None = Field(None, ge=0)
    """The smallest such weight, in the same way; none: no such bound."""


class ObjectiveSettings(
    LossSettings, AdvantageSettings, DivergenceSettings, EntropySettings, SamplerSettings
):
    """Objective."""


class OptimizerSettings(Settings):
    """Optimizer (AdamW)."""

    learning_rate: float = Field(1e-6, gt=0)
    """The peak learning rate."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up: stay, or fall to 0 at the last step."""

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _constant_has_its_warmup(cls, value: Any) -> Any:
        """TRL has another name for constant when a warm-up comes before it."""
        return "constant" if value == "constant_with_warmup" else value

    warmup_steps: Count = 0
    """Steps in which the learning rate rises from 0."""
    warmup_ratio: Share = 0.0
    """The same as a share of max_steps."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients with a larger norm are scaled down to it; 0: never."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta1: Decay = 0.9
    """Decay of the gradient's running mean."""
    adam_beta2: Decay = 0.999
    """Decay of the squared gradient's running mean."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator of Adam's step."""
    adam_moments: Literal["float32", "bfloat16"] = "float32"
    """How the two running means are kept; bfloat16 is rounded at random, so that they are right on the average."""


class AdapterSettings(Settings):
    """LoRA."""

    lora_r: Count = 0
    """Rank of the low-rank adapters that alone are trained (16 is usual, with a learning_rate of 1e-5); 0: all weights
    are."""
    lora_alpha: float = Field(32.0, gt=0)
    """Adapters count by lora_alpha / lora_r ..."""
    use_rslora: bool = False
    """... or by lora_alpha / sqrt(lora_r)."""
    lora_target_modules: Names = Field(["all-linear"])
    """Layers that get one: all-linear, or some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj."""
    base_weights: Literal["auto", "int8", "nf4"] = "auto"
    """What the adapters stand beside: the weights in dtype, or quantised to 8 or 4 bits (QLoRA); sampled from, too."""


class MemorySettings(Settings):
    """Memory."""

    micro_batch_size: Count = 0
    """Rows computed at a time; fewer need less memory and give the same update; 0: the whole mini-batch."""
    logprob_chunk: Positive = 1024
    """Tokens whose logits exist at a time on a device; at least one for each row of a micro-batch."""
    gradient_checkpointing: Literal["none", "dots", "full", "offload"] = "full"
    """What the backward pass computes once more instead of keeping it: nothing, all but the products' outcomes, whole
    layers, or whole layers whose inputs wait in the host's memory. true is full, false is none."""

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _as_trl_says(cls, value: Any) -> Any:
        return {"true": "full", "false": "none"}.get(str(value).lower(), value)
