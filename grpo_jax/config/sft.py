"""The settings of `sft`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Mapped, Name, Positive, split_list
from grpo_jax.config.model import ModelSettings, RunSettings
from grpo_jax.config.optimization import AdapterSettings, MemorySettings, OptimizerSettings
from grpo_jax.config.prompts import DataSettings
from grpo_jax.config.trl_translation import length_in_epochs
from grpo_jax.data.sft.mixture_entry import entry

Mappings = Annotated[list[dict[str, Any]], BeforeValidator(split_list)]


class SequenceSettings(Settings):
    """Sequences."""

    max_length: Positive = 1024
    """Maximum length in tokens of prompt and completion together, and of a packed sequence."""
    long_rows: Literal["drop", "cut"] = "drop"
    """Rows of more than max_length tokens: drop them, or train on their first max_length tokens. They are counted."""
    packing: bool = False
    """Pack several rows into one sequence. Rows do not attend to one another: the same loss with less padding."""
    packing_strategy: Literal["ffd", "bfd"] = "ffd"
    """How rows are packed, longest first: into the first sequence with room (ffd), or into the fullest (bfd)."""
    rows_per_step: Positive = 16
    """Number of rows in a step, over all devices; with packing: of sequences."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Length of the run in passes over the rows, in place of max_steps; none: max_steps."""


class HeldOutSettings(Settings):
    """Held-out rows."""

    eval_dataset: Name | None = None
    """Held-out prompts and completions; none: no evaluation."""
    eval_split: Name = "test"
    """The split of eval_dataset."""
    eval_steps: Count = 0
    """Evaluate every so many steps; 0: before and after training only."""
    eval_rows: Count = 256
    """Compute the perplexity of the first so many held-out rows; 0: all."""
    eval_samples: Count = 4
    """Sample and show a completion for the first so many held-out prompts; 0: none."""
    eval_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of these completions; 0: greedy."""
    max_completion_length: Positive = 256
    """Maximum length of these completions in tokens."""


class MixtureSettings(Settings):
    """Further data sets, mixed into the training set."""

    extra_datasets: Mappings | None = None
    """Further data sets of prompts and completions, a YAML list of mappings: {dataset: ROWS, split: train, limit: 500,
    weight: 0.5, prompt_column: prompt, completion_column: completion}; only dataset is required. limit: maximum number
    of rows; weight: how often each row is used, 0.5 for half of them. Rows are drawn by the seed."""

    @field_validator("extra_datasets")
    @classmethod
    def _entries(cls, given: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for one in given or []:
            entry(one)
        return given


def problems(c: Any) -> list[str | None]:
    """Checks of these settings against one another."""
    lonely = "no eval_dataset is given, so nothing is evaluated; set one, or leave this out"
    return [
        f"eval_steps = {c.eval_steps}: {lonely}" if c.eval_steps and c.eval_dataset is None else None,
        None
        if c.packing or c.packing_strategy == "ffd"
        else f"packing_strategy = {c.packing_strategy}: packing is off; set it to true",
    ]


class SFTConfig(
    RunSettings,
    ModelSettings,
    DataSettings,
    MixtureSettings,
    SequenceSettings,
    HeldOutSettings,
    OptimizerSettings,
    AdapterSettings,
    MemorySettings,
):
    """Supervised fine-tuning."""

    output_dir: Name | None = "runs/sft"
    """The run folder, local or cloud (gs://...); the same command resumes the run; none: write nothing."""
    learning_rate: float = Field(1e-5, gt=0)
    """The peak learning rate."""
    dataset: Name
    """A file or folder (jsonl, csv, parquet), a hub id (owner/name or owner/name:config), or tfds:name."""
    prompt_column: Name = "prompt"
    """The column with the prompt: a string, or a list of chat messages. Its tokens are not trained on."""
    completion_column: Name = "completion"
    """The column with the completion: a string, or a list of chat messages."""
    layout: Name | None = None
    """Name of the column layout, such as openr1_math or limo (docs/data.md); none: recognised by the columns."""
    system_prompt: str | None = None
    """System message before every chat; none: the data set's, if it has one."""
    chat_template_kwargs: Mapped | None = None
    """Extra variables for the chat template, e.g. {enable_thinking: false}; none: no extra ones."""

    model: Name
    """A local folder or a hub id in Hugging Face format."""

    @model_validator(mode="before")
    @classmethod
    def _in_epochs(cls, values: Any) -> Any:
        return length_in_epochs(dict(values)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check.first(
            check.length(self),
            check.warmup(self),
            check.schedule(self),
            check.micro_batch(self, self.rows_per_step),
            check.layout(self),
            check.template_variables(self.chat_template_kwargs or {}),
            *problems(self),
            *check.adapters(self),
        )
        return self

    def written(self) -> dict[str, Any]:
        """A length in epochs replaces one in steps."""
        return super().written() | ({} if self.num_train_epochs is None else {"max_steps": -1})
