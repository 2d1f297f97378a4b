"""The settings of `eval`."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.fields import Count, Counts, Name, Positive
from grpo_jax.config.model import ModelSettings
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.config.sampling import RewardSettings, SamplingSettings


class EvalConfig(ModelSettings, PromptSettings, RewardSettings, SamplingSettings):
    """Evaluation."""

    model: Name
    """A local folder or a hub id in Hugging Face format; none, with run: the model of that run."""
    run: Name | None = None
    """A run folder: the results are also written to its evaluations/."""
    task: Name = "countdown"
    """A task by name (--list shows them), a task file (FILE.yaml), or rows for reward functions: a file or folder, a
    hub id, or tfds:name."""
    data: Name | None = None
    """A file, folder or hub id with the task's rows; none: as the task says."""
    judge: Name | None = None
    """Reward function in place of the task's, e.g. code:sandbox=strict: tasks run programs only on request."""
    split: Name = "test"
    """The split; a task may set another."""
    prompts: Count = 0
    """Use the first so many prompts; 0: all."""
    samples: Count = 8
    """Number of completions for each prompt, the N of avg@N, pass@k and maj@N; 0: none. A task may set another."""
    other_samples: bool = False
    """Allow another number of samples than the task's published results use."""
    pass_k: Counts | None = None
    """The values of k for pass@k, at most samples; none: 1, 2, 4, ... and N."""
    greedy: bool = True
    """Also decode each prompt greedily; a task may turn this off."""
    prompts_per_step: Positive = 8
    """Number of prompts sampled at a time, over all devices."""
    output: Name | None = None
    """A JSON file for the results, with the completions beside it as .parquet; none: print the table only."""
    compare: Name | None = None
    """The JSON file of another model's results on the same prompts with the same N; shows the differences."""

    @model_validator(mode="before")
    @classmethod
    def _a_runs_own_model(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("run") and not values.get("model"):
            return {**values, "model": f"{values['run']}/hf"}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        idle = "samples = 0: greedy is off too, so there is nothing to do; set one of them"
        check.first(
            None if self.samples or self.greedy else idle,
            check.layout(self),
            check.distinct_samples(self),
            check.shortest(self),
        )
        return self
