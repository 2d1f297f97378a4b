"""Settings of `reject`: what is sampled, and which samples become rows for `sft`."""

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
    """The split of it."""
    output_dir: Name = "runs/reject"
    """The folder for rows.jsonl, summary.json and the samples; the same command goes on there."""
    prompts: Count = 0
    """Prompts used, from the first; 0: all."""
    samples: Positive = 8
    """Completions of each prompt."""
    prompts_per_step: Positive = 8
    """Prompts that are sampled at a time, over all devices: what is lost when the command is killed."""
    thresholds: Mapped | None = None
    """What a completion must reach, e.g. {countdown: 1, format: 1}: rewards by name; none: 1 of the first reward."""
    keep_per_prompt: Count = 0
    """Completions kept for each prompt at most, the first ones; 0: all that pass."""
    keep_tokens: Count = 0
    """Longer completions are not kept; 0: any length."""
    dedup_normalized: bool = True
    """Completions that differ in case, spaces and punctuation alone count as one; false: only equal ones do."""

    @field_validator("thresholds")
    @classmethod
    def _numbers(cls, given: dict[str, object] | None) -> dict[str, object] | None:
        for name, value in (given or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"thresholds: {name} = {value!r}: must be a number")
        return given

    temperature: float = Field(1.0, ge=0)
    """Logits are divided by it; 0: greedy."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check.first(check.distinct_samples(self), check.shortest(self))
        return self
