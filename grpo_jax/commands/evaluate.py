"""The verb `eval`: measure a model on held-out prompts. `evaluation/` does the measuring."""

from collections.abc import Mapping
from typing import Any

import jax

from grpo_jax.config import EvalConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.evaluation import comparison, results
from grpo_jax.evaluation.answer_rewards import SCORINGS
from grpo_jax.evaluation.evaluator import SEGMENT, Evaluation, Evaluator
from grpo_jax.evaluation.report import figures_of, problems_of, scored_figures, show
from grpo_jax.evaluation.setup import Setup, setup_of
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.scoring.make_scorer import open_scorer
from grpo_jax.scoring.reward_models import CheckedModel, find_reward_models
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.sampling import RandomStream, greedy_params, make_sampler, sampling_params
from grpo_jax.setup.status import with_status
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts


@with_status
def evaluate_command(config: EvalConfig) -> int:
    """The verb `eval`: avg@N, pass@k and maj@N with standard errors, and greedy decoding; as a table and in files."""
    setup = setup_of(config)
    config = setup.config
    found = find_reward_models(setup.rewards)
    summary = _describe(setup)
    files = results.files_to_write(summary, config.output, config.run)
    other = comparison.read(config.compare) if config.compare else None
    if other:
        comparison.check(str(config.compare), other, summary, _samples(config))
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = _held_out(setup, policy)
    if other:
        comparison.check_rows(str(config.compare), other, prompts.kept)
    evaluations = _evaluate(setup, policy, prompts, found)
    summary["prompts_dropped"] = prompts.dropped
    summary |= {mode: _figures(setup, result) for mode, result in evaluations.items()}
    summary["problems"] = {
        mode: problems_of(result, _scorings(setup)) for mode, result in evaluations.items()
    }
    if other:
        differences = comparison.differences(other["problems"], summary["problems"])
        summary["difference"] = {"from": config.compare, **differences}
    if hosts.is_writer():
        _print(summary, prompts)
        for file in files:
            results.write(file, summary, evaluations)
    return 0


def _evaluate(
    setup: Setup, policy: Policy, prompts: Prompts, found: Mapping[int, CheckedModel]
) -> dict[str, Evaluation]:
    """mode -> its results. Everything is checked before the weights are read."""
    config = setup.config
    with (
        jax.set_mesh(policy.mesh),
        open_scorer(config, policy, prompts, found, setup.rewards) as scorer,
    ):
        evaluators = {
            mode: _evaluator(config, policy, prompts, scorer, sampling, num_generations)
            for mode, sampling, num_generations in _modes(config, policy)
        }
        weights = load_sampler(policy)
        return {mode: evaluator(weights) for mode, evaluator in evaluators.items()}


def _describe(setup: Setup) -> dict[str, Any]:
    """What was evaluated, and how."""
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
    """mode -> samples of each prompt."""
    return ({"greedy": 1} if config.greedy else {}) | ({"sampled": config.samples} if config.samples else {})


def _scorings(setup: Setup) -> tuple[str, ...]:
    return SCORINGS if setup.task else ()


def _figures(setup: Setup, result: Evaluation) -> dict[str, Any]:
    if setup.task is None:
        return figures_of(result, setup.ks)
    return scored_figures(result, SCORINGS, setup.task.votes, setup.ks)


def _print(summary: dict[str, Any], prompts: Prompts) -> None:
    show(summary)
    if prompts.dropped:
        print(
            f"{prompts.dropped} prompts are longer than max_prompt_length and were left out: these figures are not of "
            "the whole task"
        )
    if difference := summary.get("difference"):
        modes = {name: part for name, part in difference.items() if name != "from"}
        comparison.show(difference["from"], modes)


def _modes(config: EvalConfig, policy: Policy) -> list[tuple[str, SamplingParams, int]]:
    """(mode, its sampling parameters, samples of each prompt), for greedy decoding and for sampling."""
    params = {"greedy": greedy_params(config, policy), "sampled": sampling_params(config, policy)}
    return [(mode, params[mode], samples) for mode, samples in _samples(config).items()]


def _held_out(setup: Setup, policy: Policy) -> Prompts:
    layout = None if setup.task else setup.config.layout
    return make_prompts(setup.config, policy, setup.rows(), prompt_column=setup.prompt_column, layout=layout)


def _evaluator(
    config: EvalConfig,
    policy: Policy,
    prompts: Prompts,
    scorer: Scorer,
    sampling: SamplingParams,
    num_generations: int,
) -> Evaluator:
    sampler = make_sampler(
        config,
        policy,
        num_generations=num_generations,
        sampling=sampling,
        seed=config.seed,
        random_stream=RandomStream.EVALUATION,
        segment=SEGMENT,
    )
    return Evaluator(policy, prompts, scorer, sampler, prompts_per_step=config.prompts_per_step)
