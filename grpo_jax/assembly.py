"""Settings -> the stages of a GRPO run. Whatever can be wrong is found here, before any weight is read."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.data.sources import is_single_file, load_rows
from grpo_jax.errors import UserError
from grpo_jax.evaluate import Evaluator
from grpo_jax.learner.learner import Learner, Passes
from grpo_jax.learner.logprobs import Scoring
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import Schedule, make_optimizer
from grpo_jax.models.qwen import abstract_params
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.policy import Policy, open_policy
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.runs.folder import model_fingerprint
from grpo_jax.runs.run import Run
from grpo_jax.scoring import Scorer
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import check_rows

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """One object a stage, in the order in which the data flows."""

    policy: Policy
    prompts: Prompts
    sampler: Sampler
    scorer: Scorer
    learner: Learner
    evaluator: Evaluator | None
    schedule: Callable[[Any], Any]  # updates taken -> learning rate


def assemble(
    config: GRPOConfig,
    model: str | Path,
    pool: RewardPool,
    train_rows: Rows | None = None,
    eval_rows: Rows | None = None,
    tokenizer: Any = None,
) -> Stages:
    """Open the model and the data that `config` names, or take the rows and the tokenizer given, and build every
    stage. UserError for what is wrong with any of them."""
    policy = open_policy(config, model, tokenizer)
    check_rows(policy.mesh, "prompts_per_step", config.prompts_per_step)
    _check_micro_batches(config, policy)
    policy.check_positions(
        "max_prompt_length + max_completion_length", config.max_prompt_length + config.max_completion_length
    )
    if train_rows is None:
        train_rows = load_rows(config.dataset, config.dataset_split, seed=config.seed)
    prompts = _prompts(config, policy, train_rows)
    scorer = Scorer(pool, config.reward_weights, policy.tokenizer)
    scorer.check(prompts)
    schedule = schedule_of(config, _passes(config).updates)
    return Stages(
        policy=policy,
        prompts=prompts,
        sampler=_sampler(config, policy),
        scorer=scorer,
        learner=_learner(config, policy, schedule),
        evaluator=_evaluator(config, policy, scorer, eval_rows),
        schedule=schedule.build(),
    )


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
        rows = config.prompts_per_step * config.num_generations // config.num_minibatches
        check_rows(policy.mesh, "the mini-batch (prompts_per_step x num_generations / num_minibatches)", rows)


def _prompts(config: GRPOConfig, policy: Policy, rows: Rows) -> Prompts:
    return Prompts(
        rows,
        policy.tokenizer,
        prompts_per_step=config.prompts_per_step,
        max_prompt_length=config.max_prompt_length,
        seed=config.seed,
        shuffle=config.shuffle,
        system_prompt=config.system_prompt,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=config.prompt_column,
    )


def _sampler(config: GRPOConfig, policy: Policy) -> Sampler:
    return Sampler(
        policy.cfg,
        policy.vocabulary,
        Sampling(config.temperature, config.top_k, config.top_p, config.min_p),
        samples=config.num_generations,
        width=config.max_completion_length,
        mesh=policy.mesh,
        seed=config.seed,
    )


def _learner(config: GRPOConfig, policy: Policy, schedule: Schedule) -> Learner:
    objective = GRPO(
        loss_type=config.loss_type,
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
        beta=config.beta,
        use_bias_correction_kl=config.use_bias_correction_kl,
        max_length=config.max_completion_length,
    )
    how = Scoring(
        temperature=config.temperature,
        num_tokens=policy.vocabulary.num_tokens,
        dtype=policy.dtype,
        chunk=config.logprob_chunk,
        remat=config.remat,
        entropy=config.log_entropy,
    )
    rows = config.prompts_per_step * config.num_generations
    optimizer = optimizer_of(config, schedule)
    return Learner(policy.cfg, objective, how, optimizer, _passes(config), rows, policy.mesh)


def _passes(config: GRPOConfig) -> Passes:
    return Passes(config.num_iterations, config.num_minibatches, config.micro_batch_size)


def schedule_of(config: GRPOConfig | SFTConfig, updates: int = 1) -> Schedule:
    """The learning rate's course. Settings count steps; the optimizer counts updates, `updates` a step."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * config.max_steps)
    return Schedule(
        config.learning_rate, config.lr_scheduler_type, warmup * updates, config.max_steps * updates
    )


def optimizer_of(config: GRPOConfig | SFTConfig, schedule: Schedule) -> optax.GradientTransformation:
    """AdamW as the settings say."""
    return make_optimizer(
        schedule,
        betas=(config.adam_beta1, config.adam_beta2),
        epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )


def _evaluator(config: GRPOConfig, policy: Policy, scorer: Scorer, rows: Rows | None) -> Evaluator | None:
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
    return Evaluator(
        policy,
        _prompts(config, policy, rows[: config.eval_prompts]),
        scorer,
        Sampling(config.eval_temperature),
        samples=config.eval_samples,
        width=config.max_completion_length,
        seed=config.seed,
    )
