"""Checks steps before any of them runs: that their rewards and tasks exist, and that their data are where the settings
say. Downloads nothing and reads no model."""

from collections.abc import Iterable, Iterator

from grpo_jax.config import EvalConfig
from grpo_jax.config.reject import RejectConfig
from grpo_jax.data.sources import check_source
from grpo_jax.errors import UserError
from grpo_jax.evaluation.setup import setup_of
from grpo_jax.pipelines.steps import Step
from grpo_jax.rewards.load import load_reward, named_apart
from grpo_jax.setup.rejection import standards_of

_DATA = {"dataset": "dataset_split", "eval_dataset": "eval_split"}
"""Setting that names a data set -> setting that names its split."""


def check_steps(steps: Iterable[Step], made: Iterable[str]) -> None:
    """Check that the steps can run.

    Args:
        made: paths that other steps will write, so that they need not exist yet.

    Raises:
        UserError: a step cannot run; the message names it.
    """
    outputs = set(made)
    for step in steps:
        try:
            _check(step, outputs)
        except UserError as fault:
            raise UserError(
                "\n".join(f"step {step.name}: {line}" for line in str(fault).splitlines())
            ) from None


def _check(step: Step, made: set[str]) -> None:
    config = step.config
    rewards = named_apart([load_reward(spec) for spec in getattr(config, "rewards", None) or ()])
    if isinstance(config, RejectConfig):
        standards_of(config, [reward.name for reward in rewards])
    for spec, split in _data_of(step):
        if spec not in made:
            check_source(spec, split)


def _data_of(step: Step) -> Iterator[tuple[str, str]]:
    """(data set, split) of all data sets that a step reads."""
    config = step.config
    if isinstance(config, EvalConfig):
        yield setup_of(config).dataset, config.split
        return
    for name, split in _DATA.items():
        if spec := getattr(config, name, None):
            yield spec, getattr(config, split)
    for one in getattr(config, "extra_datasets", None) or ():
        yield one["dataset"], one.get("split", "train")
