"""The settings of `generate`."""

from typing import Self

from pydantic import model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.fields import Name, Positive
from grpo_jax.config.model import ModelSettings
from grpo_jax.config.sampling import SamplingSettings


class GenerateConfig(ModelSettings, SamplingSettings):
    """Generation."""

    model: Name
    """A local folder or a hub id in Hugging Face format."""
    prompt: Name | None = None
    """The prompt."""
    prompts: Name | None = None
    """A file with a column prompt (jsonl, csv, parquet). Rows may have a column prefill, and a column seed: such a row
    is answered as if it was given alone, with that seed."""
    chat: bool = True
    """Apply the model's chat template; false: continue the text as it is."""
    system_prompt: str | None = None
    """System message before the prompt; none: the chat template's, if it has one."""
    prefill: Name | None = None
    """Beginning of the assistant's turn, e.g. <think>; the completion continues it; none: nothing."""
    samples: Positive = 1
    """Number of completions for each prompt."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        lost = f"system_prompt = {self.system_prompt!r}: without chat it has no place; leave one of them out"
        check.first(
            check.requests(self),
            None if self.chat or self.system_prompt is None else lost,
            check.distinct_samples(self),
            check.shortest(self),
        )
        return self
