"""What can be known of a stage, beyond its settings, before any stage runs: its rewards, its task, and that its data
are where they are said to be. Nothing is downloaded, and no model is looked at."""

from collections.abc import Iterable, Iterator

from grpo_jax.config import EvalConfig
from grpo_jax.config.reject import RejectConfig
from grpo_jax.data.sources import check_source
from grpo_jax.errors import UserError
from grpo_jax.evaluation.setup import setup_of
from grpo_jax.pipelines.stages import Stage
from grpo_jax.rewards.load import load_reward, named_apart
from grpo_jax.setup.rejection import standards_of

_DATA = {"dataset": "dataset_split", "eval_dataset": "eval_split"}
"""The settings that name data, and those that name the split of it."""


def check_stages(stages: Iterable[Stage], made: Iterable[str]) -> None:
    """UserError, naming the stage, where one could not run; `made`: what other stages write, which is not there yet."""
    made = set(made)
    for stage in stages:
        try:
            _check(stage, made)
        except UserError as fault:
            raise UserError(
                "\n".join(f"stage {stage.name}: {line}" for line in str(fault).splitlines())
            ) from None


def _check(stage: Stage, made: set[str]) -> None:
    config = stage.config
    rewards = named_apart([load_reward(spec) for spec in getattr(config, "rewards", None) or ()])
    if isinstance(config, RejectConfig):
        standards_of(config, [reward.name for reward in rewards])
    for spec, split in _data_of(stage):
        if spec not in made:
            check_source(spec, split)


def _data_of(stage: Stage) -> Iterator[tuple[str, str]]:
    """(data set, split) of all that a stage reads rows of."""
    config = stage.config
    if isinstance(config, EvalConfig):
        yield setup_of(config).dataset, config.split
        return
    for name, split in _DATA.items():
        if spec := getattr(config, name, None):
            yield spec, getattr(config, split)
    for one in getattr(config, "extra_datasets", None) or ():
        yield one["dataset"], one.get("split", "train")
