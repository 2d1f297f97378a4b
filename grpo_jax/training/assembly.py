"""Settings -> the components of a GRPO run. Whatever can be wrong is found here, before any weight is read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optax

from grpo_jax.config import GRPOConfig
from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.data.prompts import Prompts
from grpo_jax.data.sources import is_single_file, load_rows
from grpo_jax.errors import UserError
from grpo_jax.evaluation.evaluator import Evaluator
from grpo_jax.learner.learner import Learner
from grpo_jax.rewards import RewardPool
from grpo_jax.runs.status import phase
from grpo_jax.scoring.reward_models import find_reward_models, open_reward_models
from grpo_jax.setup import memory_budget
from grpo_jax.setup.curriculum import curriculum_sampler_of
from grpo_jax.setup.learner import lora_of, optimizer_of, passes_of, schedule_of, with_clipping
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.sampling import RandomStream, eval_sampling_params, make_sampler
from grpo_jax.setup.tokenizer import tokenizer_of
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import check_rows
from grpo_jax.training.components import StageComponents, components_of, configs_of
from grpo_jax.training.reflection import Reflection, load_reflection

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Components:
    """The components of a run, in data-flow order."""

    config: GRPOConfig  # with what the data decided: the number of steps
    policy: Policy
    prompts: Prompts
    curriculum: CurriculumSampler  # which of them come when
    stages: tuple[StageComponents, ...]  # of each stage of the curriculum
    evaluator: Evaluator | None
    schedule: Callable[[Any], Any] | None  # updates taken -> learning rate; None: the caller's own optimizer
    reflection: Reflection | None  # phrases that are counted in completions

    @property
    def learner(self) -> Learner:
        """The learner of the first stage. All stages have the same train state, reference and base weights."""
        return self.stages[0].learner


def assemble(
    config: GRPOConfig,
    model: str | Path,
    pool: RewardPool,
    *,
    train_rows: Rows | Mapping[str, Rows] | None = None,
    eval_rows: Rows | Mapping[str, Rows] | None = None,
    tokenizer: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    reward_tokenizers: Sequence[Any] | None = None,
) -> Components:
    """Open the model and the data that `config` names, or take the rows, the tokenizers and the optimizer given, and
    build every component. UserError for what is wrong with any of them."""
    found = find_reward_models(pool.functions, reward_tokenizers)
    policy = open_policy(
        config,
        model,
        **tokenizer_of(config.output_dir, tokenizer),
        rollout_weights=config.rollout_weights,
        rollout_cache=config.rollout_cache,
        lora=lora_of(config),
        base_weights=config.base_weights,
    )
    models = open_reward_models(found, policy, config)
    check_rows(policy.mesh, "prompts_per_step", config.prompts_per_step)
    configs = configs_of(config, policy)
    if train_rows is None:
        with phase("reading the data"):
            train_rows = _load(config, config.dataset, config.dataset_split)
    prompts = make_prompts(config, policy, train_rows)
    config, configs = _with_steps(config, prompts), [_with_steps(each, prompts) for each in configs]
    curriculum = curriculum_sampler_of(config, prompts)
    schedule = schedule_of(config, passes_of(config).updates)
    chosen = with_clipping(config, optimizer) if optimizer else optimizer_of(config, schedule)
    stages = components_of(configs, policy, pool, models, curriculum, chosen)
    return Components(
        config=config if config.curriculum else configs[0],
        policy=policy,
        prompts=prompts,
        curriculum=curriculum,
        stages=stages,
        evaluator=_evaluator(
            policy, max(stages, key=lambda stage: stage.sampler.max_completion_length), eval_rows
        ),
        schedule=None if optimizer else schedule.build(),
        reflection=load_reflection(config.reflection),
    )


def _with_steps(config: GRPOConfig, prompts: Prompts) -> GRPOConfig:
    """The settings with `num_train_epochs` replaced by the steps that those epochs take."""
    if config.num_train_epochs is None:
        return config
    steps = prompts.steps_for(config.num_train_epochs, config.prompts_per_step)
    return config.replace(num_train_epochs=None, max_steps=steps)


def _load(config: GRPOConfig, spec: str | dict[str, str], split: str) -> Any:
    """The rows of a data set, or of several named ones."""
    if isinstance(spec, str):
        return load_rows(spec, split, seed=config.seed)
    return {name: load_rows(each, split, seed=config.seed) for name, each in spec.items()}


def _held_out(config: GRPOConfig) -> Any:
    """The rows to evaluate on, as `_load`. None if there are no held-out rows; training rows are not evaluated on."""
    if config.eval_dataset is not None:
        return _load(config, config.eval_dataset, config.eval_split)
    several = isinstance(config.dataset, dict)
    given: dict[str, str] = config.dataset if isinstance(config.dataset, dict) else {"": config.dataset}
    usable = {name: spec for name, spec in given.items() if not is_single_file(spec)}
    for spec in given.values():
        if spec not in usable.values() and hosts.is_writer():
            print(
                f"No evaluation{' of it' if several else ''}: eval_dataset is unset and {spec} is a single file "
                "without a held-out split. Set eval_dataset to enable it.",
                file=sys.stderr,
            )
    if not usable:
        return None
    return _load(config, usable if several else usable[""], config.eval_split)


def _first(rows: Any, count: int, each: bool = False) -> Any:
    """So many rows from the first; of several data sets as many of `each`, or as many of all together, equally many of
    each as far as that goes."""
    if not isinstance(rows, dict):
        return rows[:count]
    if each:
        return {name: part[:count] for name, part in rows.items()}
    share, rest = divmod(count, len(rows))
    some = {name: part[: share + (number < rest)] for number, (name, part) in enumerate(rows.items())}
    return {name: part for name, part in some.items() if part}


def make_evaluator(components: Components, rows: Rows | Mapping[str, Rows]) -> Evaluator:
    """An evaluator of all these rows, which does otherwise what the run's own does."""
    stage = max(components.stages, key=lambda stage: stage.config.max_completion_length)
    count = sum(map(len, rows.values())) if isinstance(rows, Mapping) else len(rows)
    stage = replace(stage, config=stage.config.replace(eval_prompts=max(count, 1)))
    evaluator = _evaluator(components.policy, stage, rows)
    assert evaluator is not None
    return evaluator


def _evaluator(
    policy: Policy, stage: StageComponents, rows: Rows | Mapping[str, Rows] | None
) -> Evaluator | None:
    """Held-out prompts: the rows given, or those of `eval_dataset`, or another split of the training data; with the
    lengths of this stage, which has the longest completions."""
    config = stage.config
    if config.eval_prompts == 0:
        return None
    if rows is None:
        with phase("reading the data"):
            rows = _held_out(config)
        if rows is None:
            return None
    if not rows:
        raise UserError("eval_dataset: no rows; give some, or eval_prompts = 0")
    longest = config.eval_max_completion_length or config.max_completion_length
    policy.check_positions(
        "max_prompt_length + eval_max_completion_length", config.max_prompt_length + longest
    )
    held_out = _first(rows, config.eval_prompts, each=config.eval_dataset is not None)
    prompts = make_prompts(config, policy, held_out)
    stage.scorer.check(prompts)
    sampler = make_sampler(
        config,
        policy,
        num_generations=config.eval_samples,
        sampling=eval_sampling_params(config, policy),
        max_completion_length=longest,
        seed=config.seed,
        random_stream=RandomStream.EVALUATION,
        segment=config.rollout_segment,
    )
    evaluator = Evaluator(policy, prompts, stage.scorer, sampler)
    sampler.rows = memory_budget.rows_at_a_time(evaluator.demand, stage.memory, config)
    return evaluator
