"""The settings of `reject`."""

import math
from typing import Self

from pydantic import Field, field_validator, model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.fields import Count, Mapped, Name, Positive
from grpo_jax.config.model import ModelSettings
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.config.sampling import RewardSettings, SamplingSettings


class RejectConfig(ModelSettings, PromptSettings, RewardSettings, SamplingSettings):
    """Rejection sampling."""

    model: Name
    """A local folder or a hub id in Hugging Face format."""
    dataset: Name
    """Prompts, with the columns that the rewards need: a file or folder, a hub id, tfds:name, or a task."""
    dataset_split: Name = "train"
    """The split of dataset."""
    output_dir: Name = "runs/reject"
    """The folder for rows.jsonl, summary.json and the samples; the same command continues an interrupted one."""
    prompts: Count = 0
    """Use the first so many prompts; 0: all."""
    samples: Positive = 8
    """Number of completions for each prompt."""
    prompts_per_step: Positive = 8
    """Number of prompts sampled at a time, over all devices; at most these are lost when the command is killed."""
    thresholds: Mapped | None = None
    """Minimum rewards of a completion that is kept, e.g. {countdown: 1, format: 1}; none: 1 of the first reward."""
    keep_per_prompt: Count = 0
    """Maximum number of completions kept for each prompt, the first ones; 0: all that pass."""
    keep_tokens: Count = 0
    """Maximum length in tokens of a completion that is kept; 0: any length."""
    dedup_normalized: bool = True
    """Completions that differ only in case, spaces and punctuation are duplicates; false: only equal ones are."""

    @field_validator("thresholds")
    @classmethod
    def _numbers(cls, given: dict[str, object] | None) -> dict[str, object] | None:
        for name, value in (given or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"thresholds: {name} = {value!r}: must be a number")
        return given

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0: greedy."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check.first(check.distinct_samples(self), check.shortest(self))
        return self
