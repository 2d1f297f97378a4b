"""The settings of a Python script, which mean what they mean in TRL.

A script that was written for TRL gives batch sizes for each device, counts optimizer updates as steps, and relies on
TRL's defaults. On the command line and in YAML a step is a rollout, and sizes count over all devices; so they do in a
script that gives its sizes in those words (`OURS`). `in_rollouts` translates, once the devices are known.
"""

import math
import sys
from collections.abc import Mapping
from inspect import get_annotations
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from grpo_jax.config.checks import divisors
from grpo_jax.config.fields import Count, Positive
from grpo_jax.config.grpo import GRPOConfig
from grpo_jax.config.objective_checks import idle_settings
from grpo_jax.config.trl_fields import RULES
from grpo_jax.config.trl_translation import BATCH
from grpo_jax.errors import UserError, plural

OURS = ("prompts_per_step", "micro_batch_size", "num_minibatches")
"""What the batch sizes become."""
IN_UPDATES = ("max_steps", "save_steps", "eval_steps", "warmup_steps")


class ScriptConfig(GRPOConfig):
    """TRL's batch sizes and defaults."""

    adapters_may_follow: ClassVar[bool] = True  # in the trainer's peft_config
    idle_settings_pass: ClassVar[bool] = True  # TRL ignores them; `in_rollouts` says so

    per_device_train_batch_size: Positive | None = None
    """Rows (completions) that each device computes at a time; none: 8, unless prompts_per_step is given."""
    gradient_accumulation_steps: Positive | None = None
    """How many such batches make an update; none: 1."""
    steps_per_generation: Positive | None = None
    """How many such batches are sampled in one rollout; none: gradient_accumulation_steps."""
    generation_batch_size: Positive | None = None
    """Rows of a rollout over all devices, in place of steps_per_generation."""

    disable_dropout: bool = False
    """Train adapters without dropout, whatever lora_dropout says, here or in a peft_config."""
    num_train_epochs: float | None = Field(3.0, gt=0)
    """Length of the run in passes over the prompts, unless max_steps is above 0."""
    max_completion_length: Positive = 512
    """Maximum length of a completion in tokens."""
    save_steps: Count = 500
    """Save a checkpoint after every so many updates; 0: after the last only."""
    save_total_limit: Count = 0
    """How many checkpoints to keep; 0: all."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of weights, order of prompts, and sampling."""
    on_reward_error: Literal["count", "stop"] = "stop"
    """When a reward function raises an error: stop the run, or count it and go on without that reward."""

    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """Evaluate after every eval_steps updates (10 if it is not given) or after each epoch; left out: as eval_steps
    says; no: only before and after the run, if rows are held out."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """Save a checkpoint after every save_steps updates, after each epoch, or (no) after the last update only."""
    load_best_model_at_end: bool = False
    """End with the weights of the checkpoint whose evaluation was best by metric_for_best_model; it is always kept."""
    metric_for_best_model: str | None = None
    """A metric of the evaluation, such as eval_reward."""
    greater_is_better: bool | None = None
    """Whether a greater value of it is better; none: unless its name ends with loss."""

    @model_validator(mode="before")
    @classmethod
    def _as_in_trl(cls, values: Any) -> Any:
        """What TRL's own configuration does with these: max_steps wins over epochs, and a range of clipping above 1 has
        no lower bound."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if values.get("max_steps") in (None, -1, "-1"):
            values.pop("max_steps", None)
            if values.get("curriculum"):  # its stages have no epochs
                values.setdefault("num_train_epochs", None)
        else:
            values["num_train_epochs"] = None
        if isinstance(epsilon := values.get("epsilon"), int | float) and epsilon > 1:
            values |= {"epsilon": 1.0, "epsilon_high": values.get("epsilon_high") or epsilon}
        if values.get("eval_strategy") == "steps" and not values.get("eval_steps"):
            values["eval_steps"] = values.get("logging_steps") or 10
        return values

    @model_validator(mode="after")
    def _best_has_a_checkpoint(self) -> Self:
        """As transformers: what is evaluated is saved."""
        if not self.load_best_model_at_end:
            return self
        if self.metric_for_best_model is None:
            raise ValueError(
                "metric_for_best_model = None: load_best_model_at_end needs one, such as eval_reward"
            )
        if self.eval_strategy == "no" or self.eval_strategy != self.save_strategy:
            raise ValueError(
                f"load_best_model_at_end = True: eval_strategy is {self.eval_strategy} and save_strategy "
                f"{self.save_strategy}; they must be the same, steps or epoch"
            )
        if self.eval_strategy == "steps" and self.save_steps % self.eval_steps:
            raise ValueError(
                f"load_best_model_at_end = True: save_steps is {self.save_steps}, which is no multiple of eval_steps, "
                f"{self.eval_steps}"
            )
        if self.output_dir is None:
            raise ValueError(
                "load_best_model_at_end = True: without output_dir there are no checkpoints; give one"
            )
        return self

    @model_validator(mode="after")
    def _sizes_once(self) -> Self:
        """One thing is said in TRL's words or in ours."""
        theirs = [name for name in BATCH if getattr(self, name) is not None]
        ours = [name for name in OURS if name in self.model_fields_set]
        if theirs and ours:
            raise ValueError(
                f"{theirs[0]} = {getattr(self, theirs[0])}: {ours[0]} = {getattr(self, ours[0])} gives the same size "
                "in other words; keep one of them"
            )
        if self.generation_batch_size and self.steps_per_generation:
            raise ValueError(
                f"generation_batch_size = {self.generation_batch_size}: steps_per_generation is "
                f"{self.steps_per_generation} already; keep one of them"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        """What holds here for a setting that only TRL has: `push_to_hub` is False, for instance."""
        if name in RULES:
            return next(iter(RULES[name].accepted), None)
        raise AttributeError(f"GRPOConfig has no setting {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Scripts change settings after they were made; all checks run again."""
        changed = self.replace(**{name: value})
        object.__setattr__(self, "__dict__", changed.__dict__)
        object.__setattr__(self, "__pydantic_fields_set__", changed.model_fields_set)

    def in_rollouts(self, devices: int) -> tuple[GRPOConfig, str | None]:
        """(The same run in the words of the command line, what the sizes became in one sentence) on so many devices.

        Raises UserError for sizes that no rollout has."""
        sizes = _sizes(self, devices)
        kept = (self.model_fields_set | _OTHER_DEFAULTS) & GRPOConfig.model_fields.keys()
        idle = idle_settings(self)
        for sentence in idle.values():
            print(sentence, file=sys.stderr, flush=True)
        values = {name: getattr(self, name) for name in kept - idle.keys()} | (sizes.ours if sizes else {})
        values |= self._intervals()
        if self.disable_dropout:
            values.pop("lora_dropout", None)
        if sizes:
            updates = sizes.ours["num_minibatches"] * self.num_iterations
            values |= {name: math.ceil(values[name] / updates) for name in IN_UPDATES if values.get(name)}
        return GRPOConfig(**values), sizes.sentence if sizes else None

    def _intervals(self) -> dict[str, int]:
        """0 for steps that a strategy replaces."""
        evaluated = self.eval_strategy == "epoch" or (
            self.eval_strategy == "no" and "eval_strategy" in self.model_fields_set
        )
        return ({"eval_steps": 0} if evaluated else {}) | (
            {"save_steps": 0} if self.save_strategy != "steps" else {}
        )


_OTHER_DEFAULTS = frozenset(get_annotations(ScriptConfig)) & GRPOConfig.model_fields.keys()


class _Sizes(NamedTuple):
    ours: dict[str, int]
    sentence: str


def _sizes(config: ScriptConfig, devices: int) -> _Sizes | None:
    """The sizes of a rollout and its updates; None if the script gives them in our words."""
    if any(name in config.model_fields_set for name in OURS):
        return None
    batch = (config.per_device_train_batch_size or 8) * devices
    accumulated = config.gradient_accumulation_steps or 1
    drawn = _batches_of_a_rollout(config, batch, accumulated)
    prompts = _prompts(config, drawn * batch)
    ours = {"prompts_per_step": prompts, "num_minibatches": drawn // accumulated}
    if not config.auto_micro_batch:
        ours["micro_batch_size"] = batch
    batches = f"{devices} {plural(devices, 'device')} x {drawn} {plural(drawn, 'batch', 'batches')}"
    rows = f"{batch // devices} rows x {batches}"
    made = f"{prompts} {plural(prompts, 'prompt')} x {config.num_generations} completions"
    updates = f"{ours['num_minibatches']} {plural(ours['num_minibatches'], 'update')}"
    return _Sizes(ours, f"{rows} = {drawn * batch} rows a rollout: {made}, for {updates}")


def _batches_of_a_rollout(config: ScriptConfig, batch: int, accumulated: int) -> int:
    """Batches of `batch` rows that are sampled at once. Rollouts smaller than an update are by the same weights: they
    are one."""
    name, drawn = "steps_per_generation", config.steps_per_generation or accumulated
    if config.generation_batch_size:
        name, drawn = "generation_batch_size", config.generation_batch_size // batch
        if config.generation_batch_size % batch:
            raise UserError(
                f"generation_batch_size = {config.generation_batch_size}: the devices compute {batch} rows at a time; "
                f"use a multiple of that, such as {max(drawn, 1) * batch}"
            )
    if drawn % accumulated and accumulated % drawn:
        raise UserError(
            f"{name} = {getattr(config, name)}: an update of {accumulated} batches would take rows of two rollouts, "
            f"which none does here; use a multiple of gradient_accumulation_steps, such as {accumulated}"
        )
    return max(drawn, accumulated)


def _prompts(config: ScriptConfig, rows: int) -> int:
    groups, rest = divmod(rows, config.num_generations)
    if rest:
        raise UserError(
            f"num_generations = {config.num_generations}: the {rows} rows of a rollout over all devices do not divide "
            f"into such groups; use {divisors(rows, config.num_generations)}"
        )
    return groups
