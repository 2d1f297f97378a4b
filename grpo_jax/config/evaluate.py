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
    """A local folder or a hub id in Hugging Face format; with run: that run's own, unless it is given."""
    run: Name | None = None
    """A run's folder: the results are kept there, too, in evaluations/."""
    task: Name = "countdown"
    """What is evaluated: a task by name (--list shows them) or a task file (FILE.yaml); or a file or folder, a hub id,
    tfds:name of rows that rewards judge."""
    data: Name | None = None
    """Where a task's rows lie, a file, folder or hub id; none: where the task says."""
    judge: Name | None = None
    """The reward that judges a task's answers in place of its own: programs run only if asked, code:sandbox=strict."""
    split: Name = "test"
    """The split of it; a task may say another."""
    prompts: Count = 0
    """Prompts used, from the first; 0: all."""
    samples: Count = 8
    """Sampled completions of each prompt, the N of avg@N, pass@k and maj@N; 0: none. A task may say another N."""
    other_samples: bool = False
    """Take another N than the one that a task's published figures average over."""
    pass_k: Counts | None = None
    """The k of pass@k, at most samples; none: 1, 2, 4, ... and N."""
    greedy: bool = True
    """Also decode each prompt greedily; a task may say not to."""
    prompts_per_step: Positive = 8
    """Prompts that are sampled at a time, over all devices."""
    output: Name | None = None
    """A JSON file for the results, with the completions beside it as .parquet; none: only the table."""
    compare: Name | None = None
    """The JSON file of another model's results on the same prompts with the same N: shows the differences."""

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
