"""Settings of the verbs `data show`, `clean`, `decontaminate`, `dedup`, `grade` and `filter`."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Mapped, Name, Names, Positive, Share
from grpo_jax.config.model import ModelSettings
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.config.sampling import RewardSettings, SamplingSettings
from grpo_jax.errors import nearest


class SourceSettings(Settings):
    """Data."""

    data: Name
    """A file or folder (jsonl, csv, parquet), a hub id (owner/name[:config]), tfds:name, or a task."""
    split: Name = "train"
    """The split of data."""
    rows: Count = 0
    """Use the first so many rows; 0: all."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed from which a task makes its rows."""
    layout: Name | None = None
    """Name of the column layout, such as gsm8k or openr1_math (docs/data.md); none: recognised by the columns."""
    prompt_column: Name = "prompt"
    """The column with the prompt: a string, or a list of chat messages."""

    @model_validator(mode="after")
    def _layout_exists(self) -> Self:
        check.first(check.layout(self))
        return self


class OutputSettings(Settings):
    """Output."""

    out: Name
    """The file to write, .jsonl or .parquet; dropped rows and the report are written beside it."""
    overwrite: bool = False
    """Replace an existing file."""


class ShowConfig(SourceSettings):
    """Display."""

    show: Count = 2
    """Show the first so many rows as the model would see them."""
    model: Name | None = None
    """A local folder or a hub id whose chat template and tokenizer are used; none: show messages, count characters."""
    system_prompt: str | None = None
    """System message before every chat; none: the data set's, if it has one."""
    prefill: Name | None = None
    """Beginning of the assistant's turn; none: nothing."""
    chat_template_kwargs: Mapped | None = None
    """Extra variables for the chat template, e.g. {enable_thinking: false}; none: no extra ones."""

    @model_validator(mode="after")
    def _for_a_template(self) -> Self:
        for name in ("system_prompt", "prefill", "chat_template_kwargs"):
            if self.model is None and getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)!r}: it is for a chat template; give --model")
        return self


class CleanConfig(SourceSettings, OutputSettings):
    """Cleaning."""

    purpose: Literal["rl", "sft"] = "rl"
    """rl: rows need an unambiguous answer; sft: rows need a completion."""
    allow: Names | None = None
    """Reasons for which rows are not dropped, e.g. table,several_answers; none: every reason drops rows."""

    @field_validator("allow")
    @classmethod
    def _reasons_exist(cls, given: list[str] | None) -> list[str] | None:
        from grpo_jax.data.curation.cleaning import REASONS

        known = [name for name in REASONS if name != "unusable"]
        for name in given or ():
            if name not in known:
                reasons = ", ".join(known)
                raise ValueError(
                    f"allow = {name!r}: no such reason{nearest(name, known)}; they are {reasons}"
                )
        return given


class DecontaminateConfig(SourceSettings, OutputSettings):
    """Decontamination."""

    against: Names
    """The held-out data sets, several separated by commas."""
    against_split: Name = "test"
    """The split of these data sets."""
    ngram: Positive = 8
    """Length in words of the n-grams that are compared."""
    boilerplate: int = Field(10, ge=2)
    """Ignore n-grams that occur in at least this many different texts."""
    share: Share = 0.2
    """A row with this share of a held-out problem's n-grams is a leak; 0: one n-gram is enough (Open-R1)."""
    drop: bool = False
    """Drop the leaks; false: keep all rows, and mark leaks in the column overlap."""


class DedupConfig(SourceSettings, OutputSettings):
    """Duplicates."""

    threshold: float = Field(0.9, gt=0, le=1)
    """Rows with at least this Jaccard similarity of their n-grams are duplicates; 1: the same words."""
    ngram: Positive = 5
    """Length in words of these n-grams."""


class FilterConfig(SourceSettings, OutputSettings):
    """Filter."""

    low: float | None = None
    """Keep rows with a rate above this; none: no bound."""
    high: float | None = None
    """Keep rows with a rate below this; none: no bound."""
    column: Name = "pass_rate"
    """The column with the rate."""

    @model_validator(mode="after")
    def _a_window(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError(
                "low, high: give one of them, e.g. --low 0 --high 1 for problems that are sometimes solved"
            )
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(
                f"low = {self.low}: must be below high = {self.high}; nothing lies strictly between"
            )
        return self


class GradeConfig(
    ModelSettings, PromptSettings, RewardSettings, SamplingSettings, SourceSettings, OutputSettings
):
    """Grading."""

    model: Name
    """A local folder or a hub id in Hugging Face format."""
    samples: Positive = 8
    """Number of completions sampled for each problem. A completion is a solution if the first reward function says so,
    or else if it gives 1 or more."""
    prompts_per_step: Positive = 8
    """Number of problems sampled at a time, over all devices."""
    easy: Share = 0.75
    """Problems with this pass rate or a higher one are easy."""
    hard: Share = 0.25
    """Problems with this pass rate or a lower one are hard; those between are medium."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        levels = f"hard = {self.hard}: must be below easy = {self.easy}"
        check.first(
            None if self.hard < self.easy else levels,
            check.distinct_samples(self),
            check.shortest(self),
        )
        return self


VERBS: dict[str, tuple[str, type[Any]]] = {
    "show": ("say what a data set consists of, and how the model would see it", ShowConfig),
    "clean": ("strip noise, drop what cannot be trained on", CleanConfig),
    "decontaminate": ("find rows that held-out problems have leaked into", DecontaminateConfig),
    "dedup": ("drop rows that are nearly the same as an earlier one", DedupConfig),
    "grade": ("measure how often a model solves each problem", GradeConfig),
    "filter": ("keep the rows with a rate between two bounds", FilterConfig),
}
"""Verb -> (what it does, its settings)."""
