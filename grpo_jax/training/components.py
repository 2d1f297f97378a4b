"""What a stage of the curriculum works with: samplers, collectors and learners of its own lengths and group sizes.

Weights, optimizer moments, the reference and the place in the data are the same for all stages. Stages with the same
settings share their components: a stage compiles the rollout and the update once more only where it must.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optax

from grpo_jax.config import GRPOConfig
from grpo_jax.config.curriculum import StageSettings, of_stage
from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.learner.learner import Learner
from grpo_jax.models.lora import Base
from grpo_jax.models.transformer import Params
from grpo_jax.plans.fitting import with_micro_batch
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.protocol import Sampler
from grpo_jax.scoring.make_scorer import make_scorer
from grpo_jax.scoring.reward_models import RewardModel
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup import memory_budget
from grpo_jax.setup.learner import advantages_of, learner_of
from grpo_jax.setup.policy import Policy
from grpo_jax.setup.sampling import make_sampler
from grpo_jax.sharding.mesh import check_rows
from grpo_jax.training.advantages import GroupAdvantages
from grpo_jax.training.collector import Collector, DynamicCollector


@dataclass(frozen=True, kw_only=True)
class StageComponents:
    """What one stage of the curriculum works with, in data-flow order."""

    config: GRPOConfig  # the run's, as they are in the stage
    sampler: Sampler
    scorer: Scorer
    collect: Collector  # prompts -> rollout -> rewards
    advantages: GroupAdvantages  # rewards -> advantages
    learner: Learner
    memory: int | None  # bytes on each device for rollouts; None: no bound


def configs_of(config: GRPOConfig, policy: Policy) -> list[GRPOConfig]:
    """The settings of each stage; the very same object where they are the same. UserError where a stage does not fit
    the model or the mesh."""
    made: dict[str, GRPOConfig] = {}
    return [
        made.setdefault(repr(stage.overrides()), _fitted(of_stage(config, stage), policy))
        for stage in config.curriculum or [StageSettings()]
    ]


def _fitted(config: GRPOConfig, policy: Policy) -> GRPOConfig:
    policy.check_positions(
        "max_prompt_length + max_completion_length", config.max_prompt_length + config.max_completion_length
    )
    if config.auto_micro_batch:
        config = with_micro_batch(config, policy, memory_budget.smallest_device(policy))
    _check_micro_batches(config, policy)
    return config


def _check_micro_batches(config: GRPOConfig, policy: Policy) -> None:
    if config.micro_batch_size:
        check_rows(policy.mesh, "micro_batch_size", config.micro_batch_size)
    else:
        samples = config.gradient_samples or config.num_generations
        rows = config.prompts_per_step * samples // config.num_minibatches
        what = "gradient_samples" if config.gradient_samples else "num_generations"
        check_rows(policy.mesh, f"the mini-batch (prompts_per_step x {what} / num_minibatches)", rows)


def components_of(
    configs: Sequence[GRPOConfig],
    policy: Policy,
    pool: RewardPool,
    models: Mapping[int, RewardModel],
    curriculum: CurriculumSampler,
    optimizer: optax.GradientTransformation,
) -> tuple[StageComponents, ...]:
    """The components of each stage; stages with one object of settings share them. `models`: those of the pool."""
    made: dict[int, StageComponents] = {}
    for config in configs:
        if id(config) not in made:
            made[id(config)] = _components(config, policy, pool, models, curriculum, optimizer)
    return tuple(made[id(config)] for config in configs)


def _components(
    config: GRPOConfig,
    policy: Policy,
    pool: RewardPool,
    models: Mapping[int, RewardModel],
    curriculum: CurriculumSampler,
    optimizer: optax.GradientTransformation,
) -> StageComponents:
    scorer = make_scorer(
        pool,
        policy,
        models,
        curriculum.prompts,
        weights=config.reward_weights,
        overlong=_overlong(config),
    )
    learner = learner_of(config, policy, optimizer)
    memory = memory_budget.memory_for_rollouts(config, policy, learner.abstract_state, scorer.model_bytes)
    rows = memory_budget.rows_at_a_time(memory_budget.training_demand(config, policy), memory, config)
    sampler = _sampler(config, policy, rows)
    return StageComponents(
        config=config,
        sampler=sampler,
        scorer=scorer,
        collect=_collector(config, curriculum, sampler, scorer),
        advantages=GroupAdvantages(config, advantages_of(config, scorer.weights), learner),
        learner=learner,
        memory=memory,
    )


def _overlong(config: GRPOConfig) -> tuple[int, int] | None:
    buffer = config.overlong_buffer
    return (config.max_completion_length, buffer) if buffer else None


def _collector(
    config: GRPOConfig, curriculum: CurriculumSampler, sampler: Sampler, scorer: Scorer
) -> Collector:
    given = curriculum, sampler, scorer, config.prompts_per_step
    return (
        DynamicCollector(*given, config.max_rollouts_per_step)
        if config.dynamic_sampling
        else Collector(*given)
    )


def _sampler(config: GRPOConfig, policy: Policy, rows: int) -> Sampler:
    return make_sampler(
        config,
        policy,
        num_generations=config.num_generations,
        seed=config.seed,
        segment=config.rollout_segment,
        rows=rows,
    )


def set_base(stages: Sequence[StageComponents], base: Base | None) -> None:
    """Set the frozen base weights on every learner."""
    for stage in stages:
        stage.learner.base = base


def set_reference(stages: Sequence[StageComponents], weights: Params) -> None:
    """Set one copy of `weights` as the reference of every learner."""
    first = stages[0].learner
    first.set_reference(weights)
    for stage in stages[1:]:
        stage.learner.reference = first.reference
