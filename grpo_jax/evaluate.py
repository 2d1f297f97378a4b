"""The verb `eval`: measure a model on held-out prompts. The measuring itself is in `evaluation/`."""

import json
from typing import Any

import jax

from grpo_jax.config import EvalConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.data.sources import load_rows
from grpo_jax.drawing import evaluation_of, sampling_of, stop_of
from grpo_jax.evaluation.evaluator import EVALUATION, Evaluation, Evaluator
from grpo_jax.evaluation.report import figures_of, show
from grpo_jax.evaluation.statistics import pass_at_k, standard_error
from grpo_jax.policy import Policy, open_policy
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.runs.files import check_writable, write_atomically
from grpo_jax.scoring import Scorer
from grpo_jax.sharding import hosts
from grpo_jax.weights import load_sampler

__all__ = ["EVALUATION", "Evaluation", "Evaluator", "evaluate_command", "pass_at_k", "standard_error"]


def evaluate_command(config: EvalConfig) -> int:
    """The verb `eval`: avg@N and pass@k with standard errors, and greedy; a table, and JSON with `output`."""
    if config.output:
        check_writable(config.output)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = _held_out(config, policy)
    results: dict[str, Any] = {"model": config.model, "task": config.task, "split": config.split}
    with (
        RewardPool(
            config.rewards,
            workers=config.reward_workers,
            timeout=config.reward_timeout,
            on_error=config.on_reward_error,
        ) as pool,
        jax.set_mesh(policy.mesh),
    ):
        scorer = Scorer(pool, None, policy.tokenizer)
        ways = {
            name: _evaluator(config, policy, prompts, scorer, how, samples)
            for name, how, samples in _ways(config, policy)
        }
        weights = load_sampler(policy)
        results |= {name: figures_of(evaluator(weights)) for name, evaluator in ways.items()}
    if hosts.is_writer():
        show(results)
        if config.output:
            write_atomically(config.output, json.dumps(results, indent=2) + "\n")
    return 0


def _ways(config: EvalConfig, policy: Policy) -> list[tuple[str, Sampling, int]]:
    """(name, how to draw, samples) of each part of the evaluation."""
    ways = [("greedy", evaluation_of(config, policy, 0.0), 1)] if config.greedy else []
    drawn = sampling_of(config, policy)
    return ways + ([("sampled", drawn, config.samples)] if config.samples else [])


def _held_out(config: EvalConfig, policy: Policy) -> Prompts:
    rows = load_rows(config.task, config.split, seed=config.seed)
    return Prompts(
        rows[: config.prompts or None],
        policy.tokenizer,
        max_prompt_length=config.max_prompt_length,
        system_prompt=config.system_prompt,
        prefill=config.prefill,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=config.prompt_column,
        layout=config.layout,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def _evaluator(
    config: EvalConfig, policy: Policy, prompts: Prompts, scorer: Scorer, how: Sampling, samples: int
) -> Evaluator:
    return Evaluator(
        policy,
        prompts,
        scorer,
        how,
        samples=samples,
        width=config.max_completion_length,
        seed=config.seed,
        at_a_time=config.prompts_per_step,
        stop=stop_of(config, policy),
    )
