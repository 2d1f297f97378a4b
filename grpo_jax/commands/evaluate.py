"""The verb `eval`: measure a model on held-out prompts. The measuring itself is in `evaluation/`."""

from collections.abc import Mapping
from typing import Any

import jax

from grpo_jax.config import EvalConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.evaluation import comparison
from grpo_jax.evaluation import results as keeping
from grpo_jax.evaluation.answer_rewards import SCORINGS
from grpo_jax.evaluation.evaluator import EVALUATION, Evaluation, Evaluator
from grpo_jax.evaluation.report import figures_of, problems_of, scored_figures, show
from grpo_jax.evaluation.setup import Setup, setup_of
from grpo_jax.evaluation.statistics import pass_at_k, standard_error
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.scoring.reward_models import CheckedModel, find_reward_models, open_reward_models
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.sampling import evaluation_of, sampling_of, stop_of
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts

__all__ = ["EVALUATION", "Evaluation", "Evaluator", "evaluate_command", "pass_at_k", "standard_error"]


def evaluate_command(config: EvalConfig) -> int:
    """The verb `eval`: avg@N, pass@k and maj@N with standard errors, and greedy; a table, and the same in files."""
    setup = setup_of(config)
    config = setup.config
    found = find_reward_models(setup.rewards)
    results = _described(setup)
    places = keeping.places_of(results, config.output, config.run)
    other = comparison.read(config.compare) if config.compare else None
    if other:
        comparison.check(str(config.compare), other, results, _samples(config))
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = _held_out(setup, policy)
    if other:
        comparison.check_rows(str(config.compare), other, prompts.kept)
    ways = _measured(setup, policy, prompts, found)
    results["prompts_dropped"] = prompts.dropped
    results |= {way: _figures(setup, result) for way, result in ways.items()}
    results["problems"] = {way: problems_of(result, _scorings(setup)) for way, result in ways.items()}
    if other:
        apart = comparison.differences(other["problems"], results["problems"])
        results["difference"] = {"from": config.compare, **apart}
    if hosts.is_writer():
        _tell(results, prompts)
        for place in places:
            keeping.write(place, results, ways)
    return 0


def _measured(
    setup: Setup, policy: Policy, prompts: Prompts, found: Mapping[int, CheckedModel]
) -> dict[str, Evaluation]:
    """way -> what came of it. Everything is checked before the weights are read."""
    config = setup.config
    pool = RewardPool(
        setup.rewards,
        workers=config.reward_workers,
        timeout=config.reward_timeout,
        on_error=config.on_reward_error,
    )
    with pool, jax.set_mesh(policy.mesh):
        models = open_reward_models(found, policy, config)
        scorer = Scorer(pool, None, policy.tokenizer, models=models)
        ways = {
            name: _evaluator(config, policy, prompts, scorer, how, samples)
            for name, how, samples in _ways(config, policy)
        }
        weights = load_sampler(policy)
        return {name: evaluator(weights) for name, evaluator in ways.items()}


def _described(setup: Setup) -> dict[str, Any]:
    """What the results are of."""
    config = setup.config
    sampling = {
        name: getattr(config, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "max_completion_length",
            "system_prompt",
            "seed",
        )
    }
    return {
        "model": config.model,
        "task": setup.name,
        "data": setup.dataset,
        "split": config.split,
        "source": setup.task.source if setup.task else None,
        "samples": config.samples,
        "prompts": config.prompts or None,
        "judge": config.judge,
        **sampling,
    }


def _samples(config: EvalConfig) -> dict[str, int]:
    """The N of each way of drawing."""
    return ({"greedy": 1} if config.greedy else {}) | ({"sampled": config.samples} if config.samples else {})


def _scorings(setup: Setup) -> tuple[str, ...]:
    return SCORINGS if setup.task else ()


def _figures(setup: Setup, result: Evaluation) -> dict[str, Any]:
    if setup.task is None:
        return figures_of(result, setup.ks)
    return scored_figures(result, SCORINGS, setup.task.votes, setup.ks)


def _tell(results: dict[str, Any], prompts: Prompts) -> None:
    show(results)
    if prompts.dropped:
        print(
            f"{prompts.dropped} prompts are longer than max_prompt_length and were left out: these figures are not of "
            "the whole task"
        )
    if found := results.get("difference"):
        comparison.show(found["from"], {way: part for way, part in found.items() if way != "from"})


def _ways(config: EvalConfig, policy: Policy) -> list[tuple[str, SamplingParams, int]]:
    """(name, how to draw, samples) of each part of the evaluation."""
    drawn = {"greedy": evaluation_of(config, policy, 0.0), "sampled": sampling_of(config, policy)}
    return [(way, drawn[way], samples) for way, samples in _samples(config).items()]


def _held_out(setup: Setup, policy: Policy) -> Prompts:
    config = setup.config
    return Prompts(
        setup.rows(),
        policy.tokenizer,
        max_prompt_length=config.max_prompt_length,
        system_prompt=config.system_prompt,
        prefill=config.prefill,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=setup.prompt_column,
        layout=None if setup.task else config.layout,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def _evaluator(
    config: EvalConfig, policy: Policy, prompts: Prompts, scorer: Scorer, how: SamplingParams, samples: int
) -> Evaluator:
    return Evaluator(
        policy,
        prompts,
        scorer,
        how,
        num_generations=samples,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        at_a_time=config.prompts_per_step,
        stop=stop_of(config, policy),
    )
