"""Settings of `eval` -> what is evaluated: the task file and the user's settings, combined and checked. Only the rows
are read, and no jax is needed."""

from dataclasses import dataclass
from typing import Any

from grpo_jax.config import EvalConfig
from grpo_jax.data.sources import TASKS, load_rows
from grpo_jax.errors import UserError, nearest
from grpo_jax.evaluation import tasks
from grpo_jax.evaluation.statistics import powers_of_two
from grpo_jax.evaluation.tasks import ASKED, Task
from grpo_jax.rewards.load import load_reward


@dataclass(frozen=True)
class Setup:
    """An evaluation, ready for a model."""

    config: EvalConfig
    """The user's settings, and the task's for those that the user did not set."""
    task: Task | None
    """None: the rewards in the settings score the rows."""
    dataset: str
    """Where the rows come from."""

    @property
    def name(self) -> str:
        """The name of the results."""
        return self.config.task

    @property
    def rewards(self) -> list[Any]:
        """The reward functions: the task's first; those of the settings if there is no task or the user set them."""
        if self.task is None:
            return list(self.config.rewards)
        others = self.config.rewards if "rewards" in self.config.model_fields_set else ()
        return [*self.task.answer_rewards(self.config.prefill), *others]

    @property
    def ks(self) -> list[int]:
        """The k of pass@k."""
        return sorted(set(self.config.pass_k or powers_of_two(self.config.samples)))

    def rows(self) -> list[dict[str, Any]]:
        """The rows, with the prompt in the column `prompt_column`."""
        config = self.config
        try:
            rows = load_rows(self.dataset, config.split, seed=config.seed)[: config.prompts or None]
        except UserError as fault:
            hint = (
                f"; --data PATH says where the rows of {self.name} lie"
                if self.task and not config.data
                else ""
            )
            raise UserError(f"{fault}{hint}") from None
        return self.task.rows(rows, config.prompt_column, config.layout) if self.task else rows

    @property
    def prompt_column(self) -> str:
        """The column with the prompt."""
        return ASKED if self.task else self.config.prompt_column


def setup_of(config: EvalConfig) -> Setup:
    """The evaluation that `config` asks for. UserError for an unknown task or inconsistent numbers of samples."""
    task, dataset = _task(config)
    if task is not None:
        _check_samples(config, task)
        config = _with_task_settings(task, config)
        task = _with_judge(task, config)
    elif config.judge is not None:
        raise UserError(
            f"judge = {config.judge}: {config.task} is no task with answers to judge; write --rewards {config.judge}, "
            f"or one of {', '.join(tasks.names())}"
        )
    elif config.data is not None:
        raise UserError(
            f"data = {config.data}: {config.task} is no task with rows to be found elsewhere; write --task "
            f"{config.data}, or one of {', '.join(tasks.names())}"
        )
    largest = max(config.pass_k or [1])
    if largest > max(config.samples, 1):
        raise UserError(
            f"pass_k = {config.pass_k}: pass@{largest} needs {largest} samples of each prompt, and samples is "
            f"{config.samples}; raise samples, or ask for a smaller k"
        )
    return Setup(config, task, dataset)


def _task(config: EvalConfig) -> tuple[Task | None, str]:
    """(task file, data set). `countdown:numbers=3` is the task countdown on rows with those options."""
    name, _, options = config.task.partition(":")
    if config.task in tasks.names() or config.task.endswith((".yaml", ".yml")):
        task = tasks.load_task(config.task)
        return task, config.data or task.dataset
    if name in TASKS:
        return tasks.load_task(name) if name in tasks.names() else None, config.task
    if "/" not in config.task and "." not in config.task and not _exists(config.task) and not options:
        known = tasks.names()
        raise UserError(
            f"task = {config.task}: no such task{nearest(config.task.lower(), known)}; tasks are {', '.join(known)} "
            "(see grpo-jax eval --list); a task file ends in .yaml, rows of your own are a path"
        )
    return None, config.task


def _with_judge(task: Task, config: EvalConfig) -> Task:
    """The task with the judge in the settings, if any. UserError, before a model is opened, for a judge that cannot be
    loaded."""
    task = task.replace(reward=config.judge) if config.judge else task
    if task.reward is None:
        return task
    try:
        load_reward(task.reward)
    except UserError as fault:
        hint = "" if config.judge else f"; write that as --judge {task.reward}:..."
        raise UserError(f"{fault}{hint}") from None
    return task


def _exists(path: str) -> bool:
    from pathlib import Path

    return Path(path).expanduser().exists()


def _check_samples(config: EvalConfig, task: Task) -> None:
    """UserError for a number of samples other than the published one, unless `other_samples` is set: averages over
    different N do not compare."""
    published, given = task.published_samples, "samples" in config.model_fields_set
    if not published or not given or config.samples in (0, published) or config.other_samples:
        return
    raise UserError(
        f"samples = {config.samples}: published figures of {config.task} average over {published} samples of each "
        "prompt, and other N do not compare; leave it out, or add --other_samples"
    )


def _with_task_settings(task: Task, config: EvalConfig) -> EvalConfig:
    settings = {
        **task.sampling(),
        "split": task.split,
        "samples": task.usual_samples,
        "system_prompt": task.system_prompt,
        "prefill": task.prefill,
    }
    return config.replace(
        **{name: value for name, value in settings.items() if name not in config.model_fields_set}
    )
