"""Settings of `sft` alone: how rows become sequences, and what is looked at on held-out rows."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from grpo_jax.config.base import Count, Name, Positive, Settings, split_list
from grpo_jax.data.sft.mixture_entry import entry

Mappings = Annotated[list[dict[str, Any]], BeforeValidator(split_list)]


class SequenceSettings(Settings):
    """Sequences."""

    max_length: Positive = 1024
    """Tokens of prompt and completion together, and of a packed sequence."""
    long_rows: Literal["drop", "cut"] = "drop"
    """Rows of more than max_length tokens: leave them out, or learn their beginning. They are counted."""
    packing: bool = False
    """Put several rows into one sequence, none of which sees another: the same loss with less padding."""
    packing_strategy: Literal["ffd", "bfd"] = "ffd"
    """Which rows go together: longest first, each into the first sequence with room, or into the fullest."""
    rows_per_step: Positive = 16
    """Rows of a step, over all devices; with packing: sequences."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over the rows, in place of max_steps; none: max_steps says how long the training is."""


class HeldOutSettings(Settings):
    """Held-out rows."""

    eval_dataset: Name | None = None
    """Where held-out prompts and completions come from; none: nothing is evaluated."""
    eval_split: Name = "test"
    """The split of it."""
    eval_steps: Count = 0
    """Evaluate every so many steps; 0: before and after training only."""
    eval_rows: Count = 256
    """Held-out rows for the perplexity, from the first; 0: all."""
    eval_samples: Count = 4
    """Held-out prompts, from the first, for which a completion is sampled and shown; 0: none."""
    eval_temperature: float = Field(0.0, ge=0)
    """Temperature of those samples; 0: greedy."""
    max_completion_length: Positive = 256
    """Tokens of such a sample at most."""


class MixtureSettings(Settings):
    """More data."""

    extra_datasets: Mappings | None = None
    """Further data sets of prompts and completions, a YAML list of mappings: {dataset: ROWS, split: train, limit: 500,
    weight: 0.5, prompt_column: prompt, completion_column: completion}; all but dataset may be left out. limit: so many
    rows at most; weight: each row so many times, 0.5 half of them; both drawn by the seed."""

    @field_validator("extra_datasets")
    @classmethod
    def _entries(cls, given: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for one in given or []:
            entry(one)
        return given


def problems(c: Any) -> list[str | None]:
    """What must hold between them."""
    lonely = "no eval_dataset is given, so nothing is evaluated; set one, or leave this out"
    return [
        f"eval_steps = {c.eval_steps}: {lonely}" if c.eval_steps and c.eval_dataset is None else None,
        None
        if c.packing or c.packing_strategy == "ffd"
        else f"packing_strategy = {c.packing_strategy}: packing is off; set it to true",
    ]
