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
    """The text to answer or to continue."""
    prompts: Name | None = None
    """A file of such texts (jsonl, csv, parquet), in a column prompt; a row may have a prefill, and a seed: it is then
    answered as if it was asked alone with it."""
    chat: bool = True
    """Put the prompt through the model's chat template; false: continue the text as it is."""
    system_prompt: str | None = None
    """A system message before the prompt; none: the template's own, if any."""
    prefill: Name | None = None
    """What the assistant's turn begins with, e.g. <think>: the model goes on from there; none: nothing."""
    samples: Positive = 1
    """Completions of each prompt."""

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
