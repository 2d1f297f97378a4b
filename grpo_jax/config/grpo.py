"""Every setting of every verb: typed, frozen, checked before anything loads.

A class a section; a verb's settings are the sections that it uses. The names are the same in YAML, on the
command line and in Python, and keep TRL's spelling where they mean what they mean in TRL. The docstring under
a field is its help text. How settings are read and written is in `settings_io.py`.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Count, Counts, Mapped, Name, Positive, load_settings
from grpo_jax.config.checks import parse_mesh
from grpo_jax.config.curriculum import CurriculumSettings
from grpo_jax.config.curriculum import problems as curriculum_problems
from grpo_jax.config.model import ModelSettings, RunSettings
from grpo_jax.config.objective_checks import corrected
from grpo_jax.config.objective_checks import problems as objective_problems
from grpo_jax.config.optimization import AdapterSettings, MemorySettings, ObjectiveSettings, OptimizerSettings
from grpo_jax.config.prompts import DataSettings, EvalSettings, PromptSettings
from grpo_jax.config.sampling import RewardSettings, RolloutSettings, SamplingSettings
from grpo_jax.config.sft import HeldOutSettings, MixtureSettings, SequenceSettings
from grpo_jax.config.sft import problems as sft_problems
from grpo_jax.config.trl_translation import accept, length_in_epochs

__all__ = ["EvalConfig", "GRPOConfig", "GenerateConfig", "SFTConfig", "load_settings", "parse_mesh"]


class GRPOConfig(
    RunSettings,
    ModelSettings,
    DataSettings,
    CurriculumSettings,
    PromptSettings,
    EvalSettings,
    RewardSettings,
    RolloutSettings,
    SamplingSettings,
    ObjectiveSettings,
    OptimizerSettings,
    AdapterSettings,
    MemorySettings,
):
    """Settings of `train`."""

    @model_validator(mode="before")
    @classmethod
    def _in_trls_words(cls, values: Any) -> Any:
        """What TRL spells otherwise, in our words; what is refused stays, and is refused with all the rest."""
        return corrected(accept(values)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check.first(
            check.length(self),
            check.warmup(self),
            check.batch(self),
            check.weights(self),
            check.evaluation(self),
            check.layout(self),
            check.distinct_samples(self, "eval_samples", "eval_temperature"),
            check.exploration(self),
            check.shortest(self),
            check.shortest(self, "eval_max_completion_length"),
            *check.adapters(self),
            *objective_problems(self),
            *curriculum_problems(self),
        )
        return self

    def written(self) -> dict[str, Any]:
        """A length given in epochs is not one in steps too."""
        return super().written() | ({} if self.num_train_epochs is None else {"max_steps": -1})


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
    """Supervised rows."""

    output_dir: Name | None = "runs/sft"
    """The run's folder, local or cloud (gs://...); the same command resumes there; none: write nothing."""
    learning_rate: float = Field(1e-5, gt=0)
    """The peak learning rate."""
    dataset: Name
    """A file or folder (jsonl, csv, parquet), a hub id (owner/name or owner/name:config), or tfds:name."""
    prompt_column: Name = "prompt"
    """The column with the prompt: a string, or a list of chat messages. It gets no gradient."""
    completion_column: Name = "completion"
    """The column with what is learned: a string, or a list of chat messages."""
    layout: Name | None = None
    """What the columns are, by name, such as openr1_math or limo (docs/data.md); none: recognised by the columns."""
    system_prompt: str | None = None
    """A system message put before every chat; none: the dataset's own, if any."""
    chat_template_kwargs: Mapped | None = None
    """Variables that the chat template sees, e.g. {enable_thinking: false}; none: none of its own."""

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
            check.micro_batch(self, self.rows_per_step),
            check.layout(self),
            check.template_variables(self.chat_template_kwargs or {}),
            *sft_problems(self),
            *check.adapters(self),
        )
        return self

    def written(self) -> dict[str, Any]:
        """A length given in epochs is not one in steps too."""
        return super().written() | ({} if self.num_train_epochs is None else {"max_steps": -1})


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
