"""Settings of prompts, data and evaluation."""

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
    columns: Mapped | None = None
    """Columns to add before the layout is recognised, {name: column}; a field inside a column is named a.b, e.g.
    {answer: extra_info.answer}; none: no others."""
    layout: Name | None = None
    """Name of the column layout, such as gsm8k or openr1_math (docs/data.md); none: recognised by the columns."""
    system_prompt: str | None = None
    """System message before every chat; none: the data set's, if it has one."""
    prefill: Name | None = None
    """Beginning of the assistant's turn, e.g. <think>; the completion continues it; none: nothing."""
    chat_template_kwargs: Mapped | None = None
    """Extra variables for the chat template, e.g. {enable_thinking: false}; none: no extra ones."""
    max_prompt_length: Positive = 512
    """Maximum length of a prompt in tokens; rows with longer prompts are dropped and counted, never cut."""

    @field_validator("columns")
    @classmethod
    def _names_of_columns(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        check.first(check.column_names(given or {}))
        return given

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        check.first(check.template_variables(given or {}))
        return given


class DataSettings(Settings):
    """Data."""

    dataset: Datasets = "countdown"
    """A file or folder (jsonl, csv, parquet), a hub id (owner/name[:config]), tfds:name, or a task. train also takes a
    mixture of several, {name: data set}."""
    dataset_split: Name = "train"
    """The training split."""
    shuffle_dataset: bool = True
    """Shuffle the rows in each epoch, by the seed; false: keep the data set's order."""


class EvalSettings(Settings):
    """Evaluation on held-out prompts."""

    eval_dataset: Datasets | None = None
    """Held-out prompts; or several sets, {name: data set}, each with its own metrics under eval/NAME/; none: the
    training data set."""
    eval_split: Name = "test"
    """The split of eval_dataset."""
    eval_steps: Count = 0
    """Evaluate every so many steps; 0: before and after training only."""
    eval_prompts: Count = 64
    """Use the first so many prompts of each held-out set; 0: no evaluation."""
    eval_samples: Positive = 1
    """Number of completions for each held-out prompt."""
    eval_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the evaluation; 0: greedy."""
    eval_top_p: float = Field(1.0, gt=0, le=1)
    """top_p of the evaluation; 1: all tokens."""
    eval_top_k: Count = 0
    """top_k of the evaluation; 0: all tokens."""
    eval_min_p: float = Field(0.0, ge=0, lt=1)
    """min_p of the evaluation; 0: all tokens."""
    eval_max_completion_length: Positive | None = None
    """Maximum length of a completion in the evaluation, in tokens; none: max_completion_length."""
