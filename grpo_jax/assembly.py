"""Settings -> the stages of a GRPO run. Whatever can be wrong is found here, before any weight is read."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from grpo_jax import capacity
from grpo_jax.collecting import Collector, DynamicCollector
from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.data.sources import is_single_file, load_rows
from grpo_jax.drawing import evaluation_of, sampling_of, stop_of
from grpo_jax.errors import UserError
from grpo_jax.evaluate import Evaluator
from grpo_jax.judging import Judge
from grpo_jax.learner.learner import Learner
from grpo_jax.learning import (
    advantages_of,
    learner_of,
    lora_of,
    optimizer_of,
    passes_of,
    schedule_of,
    with_clipping,
)
from grpo_jax.models.qwen import abstract_params
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.plans.fitting import with_micro_batch
from grpo_jax.policy import Policy, open_policy
from grpo_jax.reflection import Reflection, load_reflection
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.runs.folder import model_fingerprint
from grpo_jax.runs.run import Run
from grpo_jax.scoring import Scorer
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import check_rows

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """One object a stage, in the order in which the data flows."""

    config: GRPOConfig  # with what the data decided: the number of steps
    policy: Policy
    prompts: Prompts
    sampler: Sampler
    scorer: Scorer
    collect: Collector  # prompts -> rollout -> rewards
    judge: Judge  # rewards -> advantages
    learner: Learner
    evaluator: Evaluator | None
    schedule: Callable[[Any], Any] | None  # updates taken -> learning rate; None: the caller's own optimizer
    reflection: Reflection | None  # phrases that are counted in completions


def assemble(
    config: GRPOConfig,
    model: str | Path,
    pool: RewardPool,
    train_rows: Rows | None = None,
    eval_rows: Rows | None = None,
    tokenizer: Any = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Stages:
    """Open the model and the data that `config` names, or take the rows, the tokenizer and the optimizer given, and
    build every stage. UserError for what is wrong with any of them."""
    policy = open_policy(
        config,
        model,
        tokenizer,
        config.rollout_weights,
        config.rollout_cache,
        lora_of(config),
        config.base_weights,
    )
    check_rows(policy.mesh, "prompts_per_step", config.prompts_per_step)
    if config.auto_micro_batch:
        config = with_micro_batch(config, policy, capacity.smallest_device(policy))
    _check_micro_batches(config, policy)
    policy.check_positions(
        "max_prompt_length + max_completion_length", config.max_prompt_length + config.max_completion_length
    )
    if train_rows is None:
        train_rows = load_rows(config.dataset, config.dataset_split, seed=config.seed)
    prompts = _prompts(config, policy, train_rows)
    config = _with_steps(config, prompts)
    scorer = Scorer(pool, config.reward_weights, policy.tokenizer, _overlong(config))
    scorer.check(prompts)
    schedule = schedule_of(config, passes_of(config).updates)
    chosen = with_clipping(config, optimizer) if optimizer else optimizer_of(config, schedule)
    learner = learner_of(config, policy, chosen)
    memory = capacity.memory_for_rollouts(config, policy, learner.abstract_state)
    rows = capacity.rows_at_a_time(capacity.training_demand(config, policy), memory, config)
    sampler = _sampler(config, policy, rows)
    return Stages(
        config=config,
        policy=policy,
        prompts=prompts,
        sampler=sampler,
        scorer=scorer,
        collect=_collector(config, prompts, sampler, scorer),
        judge=Judge(config, advantages_of(config, scorer.weights), learner),
        learner=learner,
        evaluator=_evaluator(config, policy, scorer, eval_rows, memory),
        schedule=None if optimizer else schedule.build(),
        reflection=load_reflection(config.reflection),
    )


def _with_steps(config: GRPOConfig, prompts: Prompts) -> GRPOConfig:
    """Passes over the data as the steps that they take."""
    if config.num_train_epochs is None:
        return config
    return config.replace(num_train_epochs=None, max_steps=prompts.steps_for(config.num_train_epochs))


def _overlong(config: GRPOConfig) -> tuple[int, int] | None:
    buffer = config.overlong_buffer
    return (config.max_completion_length, buffer) if buffer else None


def _collector(config: GRPOConfig, prompts: Prompts, sampler: Sampler, scorer: Scorer) -> Collector:
    if config.dynamic_sampling:
        return DynamicCollector(prompts, sampler, scorer, config.max_rollouts_per_step)
    return Collector(prompts, sampler, scorer)


def open_run(config: GRPOConfig | SFTConfig, policy: Policy) -> Run:
    """The run of these settings on this model, new or resumed. UserError when its folder holds another."""
    identity = json.loads((policy.folder / "config.json").read_text(encoding="utf-8"))
    fingerprint = model_fingerprint(identity, abstract_params(policy.cfg))
    fingerprint["weights"] = sampled_digest(policy.folder)
    return Run(config.model_dump(mode="json"), fingerprint, is_writer=hosts.is_writer())


def _check_micro_batches(config: GRPOConfig, policy: Policy) -> None:
    if config.micro_batch_size:
        check_rows(policy.mesh, "micro_batch_size", config.micro_batch_size)
    else:
        samples = config.gradient_samples or config.num_generations
        rows = config.prompts_per_step * samples // config.num_minibatches
        what = "gradient_samples" if config.gradient_samples else "num_generations"
        check_rows(policy.mesh, f"the mini-batch (prompts_per_step x {what} / num_minibatches)", rows)


def _prompts(config: GRPOConfig, policy: Policy, rows: Rows) -> Prompts:
    return Prompts(
        rows,
        policy.tokenizer,
        prompts_per_step=config.prompts_per_step,
        max_prompt_length=config.max_prompt_length,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
        system_prompt=config.system_prompt,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=config.prompt_column,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def _sampler(config: GRPOConfig, policy: Policy, rows: int) -> Sampler:
    return Sampler(
        policy.cfg,
        policy.vocabulary,
        sampling_of(config, policy),
        samples=config.num_generations,
        width=config.max_completion_length,
        mesh=policy.mesh,
        seed=config.seed,
        segment=config.rollout_segment,
        rows=rows,
        stop=stop_of(config, policy),
        cache=policy.rollout_cache,
        attention=policy.attention,
    )


def _evaluator(
    config: GRPOConfig, policy: Policy, scorer: Scorer, rows: Rows | None, memory: int | None
) -> Evaluator | None:
    """Held-out prompts: the rows given, or those of `eval_dataset`, or another split of the training data. None
    where there are none: rows that are trained on tell nothing."""
    if config.eval_prompts == 0:
        return None
    if rows is None and config.eval_dataset is None and is_single_file(config.dataset):
        if hosts.is_writer():
            told = f"eval_dataset: none, and {config.dataset} is one file without held-out rows"
            print(f"{told}: nothing will be evaluated", file=sys.stderr)
        return None
    if rows is None:
        rows = load_rows(config.eval_dataset or config.dataset, config.eval_split, seed=config.seed)
    if not rows:
        raise UserError("eval_dataset: no rows; give some, or eval_prompts = 0")
    evaluator = Evaluator(
        policy,
        _prompts(config, policy, rows[: config.eval_prompts]),
        scorer,
        evaluation_of(config, policy, config.eval_temperature),
        samples=config.eval_samples,
        width=config.max_completion_length,
        seed=config.seed,
        segment=config.rollout_segment,
        stop=stop_of(config, policy),
    )
    evaluator.sampler.rows = capacity.rows_at_a_time(evaluator.demand, memory, config)
    return evaluator
