"""Every setting of every verb: typed, frozen, checked before anything loads.

A class a section; a verb's settings are the sections that it uses. The names are the same in YAML, on the
command line and in Python, and keep TRL's spelling where they mean what they mean in TRL. The docstring under
a field is its help text. How settings are read and written is in `settings_io.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from grpo_jax import settings_checks as check
from grpo_jax.settings_checks import parse_mesh
from grpo_jax.settings_curriculum import CurriculumSettings, Datasets
from grpo_jax.settings_curriculum import problems as curriculum_problems
from grpo_jax.settings_io import (
    Count,
    Counts,
    Mapped,
    Name,
    Positive,
    Settings,
    Share,
    Specs,
    Texts,
    Tokens,
    load_settings,
)
from grpo_jax.settings_learner import AdapterSettings, MemorySettings, ObjectiveSettings, OptimizerSettings
from grpo_jax.settings_objectives import corrected
from grpo_jax.settings_objectives import problems as objective_problems
from grpo_jax.settings_sft import HeldOutSettings, MixtureSettings, SequenceSettings
from grpo_jax.settings_sft import problems as sft_problems
from grpo_jax.settings_translation import accept, length_in_epochs

__all__ = ["EvalConfig", "GRPOConfig", "GenerateConfig", "SFTConfig", "load_settings", "parse_mesh"]


class ModelSettings(Settings):
    """Model and machine."""

    model: Name = "demo"
    """A local folder or a hub id in Hugging Face format; `demo` makes a tiny random model of its own."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Every random number is a function of this seed, so the same settings give the same run."""
    adapter: Name | None = None
    """A folder or hub id of a LoRA adapter in PEFT's format on top of the model: train and sft go on with it, with its
    own rank, alpha and modules; other verbs merge it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type that is computed in; auto: bfloat16 on accelerators, float32 on CPU."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """The kernel of whole rows (training, scoring, prompts): cudnn on CUDA, splash on TPU, or xla; auto: by the
    device, xla in float32."""
    mesh: str | None = None
    """How the devices are arranged, e.g. data=1,fsdp=8,tensor=1; none: a mesh that fits them."""
    compilation_cache: Name | None = None
    """A folder where compiled programs are kept, so that the next start is quick; none: JAX's own setting."""

    @field_validator("mesh")
    @classmethod
    def _mesh_parses(cls, text: str | None) -> str | None:
        parse_mesh(text)
        return text


class RunSettings(Settings):
    """Run."""

    output_dir: Name | None = "runs/grpo"
    """The run's folder, local or cloud (gs://...); the same command resumes there; none: write nothing."""
    max_steps: Positive = 200
    """Steps of training; a step is one rollout (sft: one batch)."""
    save_steps: Count = 50
    """A checkpoint every so many steps; 0: only after the last step."""
    save_total_limit: Count = 3
    """The newest checkpoints that are kept; 0: all of them."""


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


class RewardSettings(Settings):
    """Rewards."""

    rewards: Specs = Field(["countdown"])
    """Rewards: names, file.py:function, with options as in boxed_math:think=false, or a reward model, model:FOLDER;
    several separated by commas."""
    reward_timeout: float = Field(10.0, gt=0)
    """Seconds after which a reward call is given up and its worker replaced."""
    reward_workers: Count = 0
    """Processes that compute rewards; 0: one a core, 8 at most."""
    on_reward_error: Literal["count", "stop"] = "count"
    """When a reward function raises: count it and go on without that reward, or stop the run."""

    @field_validator("rewards")
    @classmethod
    def _rewards_differ(cls, names: list[str]) -> list[str]:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rewards = {names}: {twice} is named twice; keep one and give it a weight")
        return names


class SamplingSettings(Settings):
    """Sampling."""

    max_completion_length: Positive = 256
    """Tokens of a completion at most, its end-of-sequence token included."""
    temperature: float = Field(1.0, ge=0)
    """Logits are divided by it; 0: greedy."""
    top_k: Count = 0
    """Sample among the k likeliest tokens; 0: among all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together hold this probability; 1: among all."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Leave out tokens less likely than this share of the likeliest one's probability; 0: none."""
    stop_strings: Texts | None = None
    """A completion ends with the token that completes one of them, and keeps it: one text, or a YAML list such as
    ["\\n\\n", "END"]; none: only the end of sequence ends it."""
    min_tokens: Count = 0
    """No end-of-sequence token is drawn before so many tokens (vLLM's min_tokens in TRL's generation_kwargs)."""
    banned_tokens: Tokens | None = None
    """Tokens never drawn: one text that is a token, or a YAML list of such texts and ids, e.g. ["<think>", 17]."""
    rollout_weights: Literal["auto", "int8"] = "auto"
    """What is sampled from: the weights in dtype, or int8 copies, half as large as bfloat16 and not quite the same."""
    rollout_cache: Literal["auto", "int8"] = "auto"
    """Keys and values while sampling: in dtype, or int8, about half of bfloat16 and not quite the same."""

    @field_validator("stop_strings")
    @classmethod
    def _stop_strings_are_text(cls, strings: list[str] | None) -> list[str] | None:
        check.first(check.stop_strings(strings or []))
        return strings


class RolloutSettings(Settings):
    """Rollout."""

    prompts_per_step: Positive = 8
    """Prompts of a step, over all devices."""
    num_generations: int = Field(8, ge=2)
    """Completions of each prompt: the group that a completion is compared with."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over the prompts, in place of max_steps; none: max_steps says how long the training is."""
    dynamic_sampling: bool = False
    """Sample on until prompts_per_step groups have rewards that differ: the others teach nothing (DAPO)."""
    max_rollouts_per_step: Positive = 4
    """Rollouts of prompts_per_step prompts that a step may take for dynamic_sampling."""
    rollout_segment: Count = 64
    """Tokens drawn before rows that have ended leave the rest behind and the cache grows; 0: none ever leaves."""
    rollout_memory: float | None = Field(None, gt=0)
    """GiB on each device for the cache and logits of a rollout: prompts that do not fit wait until others have ended;
    none: what weights and optimizer leave of a device's memory (on CPU: no bound)."""
    reflection: Name | None = None
    """Count responses that recheck, hesitate or explore, and their lengths: `words` for the list that comes along, or a
    YAML file of category: [phrases]; none: do not."""
    log_completions_steps: Count = 10
    """Save a step's completions every so many steps; 0: never."""
    completion_samples: Share = 0.0
    """The share of all completions that go into completion_samples.txt, to be read; mini-R1 takes 0.1; 0: none."""
    success_samples: Share = 0.0
    """The share of those that succeeded that go into success_completion_samples.txt; mini-R1 takes 0.1; 0: none."""


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
