"""Settings of what is asked: prompts and how they are worded, the data they come from, what is held out."""

from typing import Any

from pydantic import Field, field_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.curriculum import Datasets
from grpo_jax.config.fields import Count, Mapped, Name, Positive


class PromptSettings(Settings):
    """Prompts."""

    prompt_column: Name = "prompt"
    """The column with the prompt: a string, or a list of chat messages."""
    layout: Name | None = None
    """What the columns are, by name, such as gsm8k or openr1_math (docs/data.md); none: recognised by the columns."""
    system_prompt: str | None = None
    """A system message put before every chat; none: the dataset's own, if any."""
    prefill: Name | None = None
    """What the assistant's turn begins with, e.g. <think>: the completion goes on from there; none: nothing."""
    chat_template_kwargs: Mapped | None = None
    """Variables that the chat template sees, e.g. {enable_thinking: false}; none: none of its own."""
    max_prompt_length: Positive = 512
    """Tokens; rows with longer prompts are dropped and counted, never cut."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        check.first(check.template_variables(given or {}))
        return given


class DataSettings(Settings):
    """Data."""

    dataset: Datasets = "countdown"
    """A file or folder (jsonl, csv, parquet), a hub id (owner/name[:config]), tfds:name, or a task; train: or several
    by name, {name: data set}, which are mixed."""
    dataset_split: Name = "train"
    """The split that is trained on."""
    shuffle_dataset: bool = True
    """Visit the rows in an order drawn from the seed anew each epoch; false: in the dataset's order."""


class EvalSettings(Settings):
    """Evaluation on held-out prompts."""

    eval_dataset: Datasets | None = None
    """Where held-out prompts come from; or several sets by name, {name: data set}, each with figures of its own under
    eval/NAME/; none: the training dataset."""
    eval_split: Name = "test"
    """The split that is held out."""
    eval_steps: Count = 0
    """Evaluate every so many steps; 0: before and after training only."""
    eval_prompts: Count = 64
    """Held-out prompts used, from the first, of each named set; 0: no evaluation."""
    eval_samples: Positive = 1
    """Completions for each held-out prompt."""
    eval_temperature: float = Field(0.0, ge=0)
    """Temperature of the evaluation; 0: greedy."""
    eval_top_p: float = Field(1.0, gt=0, le=1)
    """Its top_p, which is not the training's; 1: all tokens."""
    eval_top_k: Count = 0
    """Its top_k; 0: all tokens."""
    eval_min_p: float = Field(0.0, ge=0, lt=1)
    """Its min_p; 0: all tokens."""
    eval_max_completion_length: Positive | None = None
    """Tokens of a held-out completion at most; none: max_completion_length."""
