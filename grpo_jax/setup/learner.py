"""Settings -> the learner and its parts: advantages, objective, passes, schedule, optimizer."""

import math
from collections.abc import Sequence

import optax

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.learner.adapter_dropout import AdapterDropout
from grpo_jax.learner.advantages import Advantages
from grpo_jax.learner.batches import Passes
from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.moments import in_bfloat16
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.lora import TARGETS, LoRA
from grpo_jax.setup.policy import Policy


def learner_of(config: GRPOConfig, policy: Policy, optimizer: optax.GradientTransformation) -> Learner:
    """The learner of a run."""
    logprob_settings = LogprobSettings(
        temperature=config.temperature,
        num_tokens=policy.vocabulary.num_tokens,
        dtype=policy.dtype,
        chunk=config.logprob_chunk,
        remat=config.gradient_checkpointing,
        attention=policy.attention,
        entropy=config.log_entropy,
    )
    return Learner(
        cfg=policy.cfg,
        objective=objective_of(config),
        logprob_settings=logprob_settings,
        optimizer=optimizer,
        passes=passes_of(config),
        shape=(config.prompts_per_step, config.num_generations),
        mesh=policy.mesh,
        lora=policy.lora,
        reference_on_host=config.reference_memory == "host",
        sync=_sync(config, policy),
        dropout=dropout_of(config),
    )


def dropout_of(config: GRPOConfig | SFTConfig) -> AdapterDropout | None:
    """The dropout of adapters; None for none."""
    return AdapterDropout(config.lora_dropout, config.seed) if config.lora_dropout else None


def _sync(config: GRPOConfig, policy: Policy) -> ReferenceSync | None:
    if not config.sync_ref_model:
        return None
    return ReferenceSync(config.ref_model_mixup_alpha, config.ref_model_sync_steps, policy.dtype)


def lora_of(config: GRPOConfig | SFTConfig) -> LoRA | None:
    """The new adapters that the settings ask for; None without `lora_r`."""
    if not config.lora_r:
        return None
    names = config.lora_target_modules
    chosen = [name for name in TARGETS if names == ["all-linear"] or f"{name}_proj" in names]
    return LoRA(config.lora_r, config.lora_alpha, tuple(chosen), config.use_rslora)


def objective_of(config: GRPOConfig) -> GRPO:
    """The loss to minimise. A KL penalty in the reward is not part of it."""
    return GRPO(
        loss_type=config.loss_type,
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
        beta=config.beta if config.kl_in == "loss" else 0.0,
        use_bias_correction_kl=config.use_bias_correction_kl,
        max_length=config.max_completion_length,
        level=config.importance_sampling_level,
        delta=config.delta,
        sapo_temperatures=(config.sapo_temperature_pos, config.sapo_temperature_neg),
        vespo_positive=(config.vespo_k_pos, config.vespo_lambda_pos),
        vespo_negative=(config.vespo_k_neg, config.vespo_lambda_neg),
        kl_estimator=config.kl_estimator,
        bonus=_bonus(config),
        top_entropy_quantile=config.top_entropy_quantile,
        off_policy_threshold=config.off_policy_mask_threshold,
        sampler_mode=config.sampler_correction,
        sampler_bounds=(config.sampler_correction_min, config.sampler_correction_max),
    )


def _bonus(config: GRPOConfig) -> EntropyBonus:
    return EntropyBonus(
        config.entropy_coef,
        adaptive=config.use_adaptive_entropy,
        lowest=config.entropy_coef_min,
        largest=config.entropy_coef_max,
        step=config.entropy_coef_delta,
        target=config.entropy_target,
    )


def advantages_of(config: GRPOConfig, weights: Sequence[float]) -> Advantages:
    """How rewards become advantages. `weights` are those of the reward functions; the penalty for overlong completions
    is appended with weight 1."""
    return Advantages(
        config.advantage_estimator,
        config.scale_rewards,
        config.multi_objective_aggregation == "normalize_then_sum",
        (*weights, 1.0) if config.overlong_buffer else tuple(weights),
        config.advantage_clip,
    )


def passes_of(config: GRPOConfig) -> Passes:
    """How a rollout becomes optimizer updates."""
    return Passes(
        num_iterations=config.num_iterations,
        num_minibatches=config.num_minibatches,
        micro_batch_size=config.micro_batch_size,
        gradient_samples=config.gradient_samples,
        mask_truncated=config.mask_truncated_completions,
        skip_zero_advantages=config.skip_zero_advantages,
        length_buckets=config.length_buckets,
        share_prompts=config.share_prompts,
        carries_over=config.dynamic_sampling,
    )


def schedule_of(config: GRPOConfig | SFTConfig, updates: int = 1) -> Schedule:
    """The learning-rate schedule. Settings count steps; the optimizer counts updates, `updates` per step."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * config.max_steps)
    return Schedule(
        config.learning_rate,
        config.lr_scheduler_type,
        warmup * updates,
        config.max_steps * updates,
        config.lr_scheduler_kwargs or {},
    )


def with_clipping(
    config: GRPOConfig, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """A custom optimizer with gradients clipped by `max_grad_norm`, as in TRL, and moments stored as `adam_moments`
    says."""
    if config.max_grad_norm > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optimizer)
    return in_bfloat16(optimizer) if config.adam_moments == "bfloat16" else optimizer


def optimizer_of(config: GRPOConfig | SFTConfig, schedule: Schedule) -> optax.GradientTransformation:
    """The settings' optimizer with their schedule, clipping and moments."""
    return make_optimizer(
        schedule,
        optim=config.optim,
        betas=(config.adam_beta1, config.adam_beta2),
        epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        compact=config.adam_moments == "bfloat16",
    )
