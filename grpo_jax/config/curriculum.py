"""Settings of the curriculum: mixtures of data sets, stages of a run, prompts that are left out."""

from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Mapped, Name, Positive, read_mapping
from grpo_jax.errors import UserError

OVERRIDES = ("max_completion_length", "num_generations", "temperature", "overlong_buffer")
"""The settings that a stage may override."""

TRIGGERS = ("until_step", "until_epochs", "until_plateau", "until_clipped")


def one_or_several(value: Any, info: ValidationInfo) -> Any:
    """A data set's name, or {name: data set}, the domains of a mixture; `{a: x, b: y}` in a string is one, too."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = read_mapping(value, info)
    texts = lambda items: all(isinstance(item, str) and item for item in items)
    if isinstance(value, dict) and value and texts(value) and texts(value.values()):
        return value
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{info.field_name} = {value!r}: must be a data set, or several as {{name: data set}}")


def shares(value: Any, info: ValidationInfo) -> Any:
    """{name: weight}, none below 0 and not all 0."""
    value = read_mapping(value, info)
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float("inf")
    if value is None:
        return None
    if not (isinstance(value, dict) and all(map(number, value.values())) and any(value.values())):
        raise ValueError(
            f"{info.field_name} = {value!r}: must be {{name: weight}}, weights from 0 up, one above 0"
        )
    return {str(name): float(weight) for name, weight in value.items()}


Datasets = Annotated[str | dict[str, str], BeforeValidator(one_or_several)]
Shares = Annotated[dict[str, float], BeforeValidator(shares)]


class StageSettings(Settings):
    """A stage of a curriculum."""

    name: Name | None = None
    """The stage's name; none: its number."""
    mixture: Shares | None = None
    """Weights of the data sets in this stage, {name: weight}; sets that are not named are left out; none: the run's."""
    where: Mapped | None = None
    """Draw only rows with these values, {column: value} or {column: [values]}; none: all rows."""
    until_step: Positive | None = None
    """End the stage after this step of the run."""
    until_epochs: float | None = Field(None, gt=0)
    """End the stage after this many passes over its prompts."""
    until_plateau: float | None = None
    """End the stage when the mean reward of the last `window` steps is less than this above that of the `window` steps
    before."""
    until_clipped: float | None = Field(None, gt=0, le=1)
    """End the stage when this share of the completions of the last `window` steps was cut at max_completion_length."""
    window: Positive = 20
    """Number of steps that until_plateau and until_clipped average over."""
    max_completion_length: Positive | None = None
    """Maximum length of a completion in tokens; none: the run's, as for the next three."""
    num_generations: int | None = Field(None, ge=2)
    """Number of completions sampled for each prompt."""
    temperature: float | None = Field(None, gt=0)
    """Sampling temperature."""
    overlong_buffer: Count | None = None
    """Number of tokens before max_completion_length over which the overlong penalty grows."""

    @property
    def ends(self) -> bool:
        """Whether the stage has an end condition."""
        return any(getattr(self, name) is not None for name in TRIGGERS)

    def overrides(self) -> dict[str, Any]:
        """The settings that this stage overrides, by name."""
        return {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}


def stages(value: Any, info: ValidationInfo) -> Any:
    """A list of stages; an error names the stage that it is in."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(
                f"{info.field_name} = {value}: not YAML; write [{{until_step: 100}}, {{}}]"
            ) from None
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"{info.field_name} = {value!r}: must be a list of stages, such as [{{until_step: 100}}, {{}}]"
        )
    return [_stage(f"{info.field_name}[{number}]", given) for number, given in enumerate(value)]


def _stage(place: str, given: Any) -> StageSettings:
    if isinstance(given, StageSettings):
        return given
    if not isinstance(given, dict):
        raise ValueError(f"{place} = {given!r}: must be a mapping of settings of a stage")
    try:
        return StageSettings(**given)
    except UserError as fault:
        raise ValueError(f"{place}: {fault}") from None


class CurriculumSettings(Settings):
    """Curriculum."""

    mixture: Shares | None = None
    """Weights of several data sets, {name: weight}; none: in proportion to their numbers of prompts."""
    curriculum: Annotated[list[StageSettings], BeforeValidator(stages)] | None = None
    """A list of stages, each a mapping. mixture and where select its prompts; until_step, until_epochs, until_plateau
    or until_clipped end it (in the last stage: the run); max_completion_length, num_generations, temperature and
    overlong_buffer override the run's; none: one stage."""
    history_resampling: bool = False
    """Leave a prompt out of later epochs once all of its completions succeeded (SRPO)."""
    pass_rate_window: Annotated[list[float], BeforeValidator(read_mapping)] | None = None
    """[low, high]: train only on prompts whose success rate lies strictly between the two. The rate is the one last
    measured in the run or, before that, the column pass_rate; prompts without a rate are kept; none: all prompts."""
    pass_rate_retry: Count = 0
    """Number of epochs after which a prompt that was left out is tried again; 0: never."""

    @field_serializer("curriculum")
    def _only_given_settings(self, value: list[StageSettings] | None) -> list[dict[str, Any]] | None:
        return None if value is None else [stage.model_dump(exclude_none=True) for stage in value]

    @field_validator("pass_rate_window")
    @classmethod
    def _window_has_room(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise ValueError(
                f"pass_rate_window = {window}: must be [low, high] with low < high, such as [0.1, 0.9]"
            )
        return window

    @model_validator(mode="after")
    def _stages_follow(self) -> Self:
        for number, stage in enumerate((self.curriculum or [])[:-1]):
            if not stage.ends:
                raise ValueError(
                    f"curriculum[{number}]: nothing ends this stage; give it {' or '.join(TRIGGERS)}"
                )
        if self.pass_rate_retry and not (self.history_resampling or self.pass_rate_window):
            raise ValueError(
                f"pass_rate_retry = {self.pass_rate_retry}: nothing is left out; set pass_rate_window or "
                "history_resampling"
            )
        return self


def problems(c: Any) -> list[str | None]:
    """Checks of these settings against the others."""
    epochs = (
        f"num_train_epochs = {c.num_train_epochs}: not with a curriculum; write max_steps, which bounds its length"
        if c.curriculum and c.num_train_epochs is not None
        else None
    )
    return [epochs, _stage_fault(c)]


def _stage_fault(c: Any) -> str | None:
    """The settings must fit together in every stage."""
    for number, stage in enumerate(c.curriculum or []):
        if stage.overrides():
            try:
                of_stage(c, stage)
            except UserError as fault:
                return f"curriculum[{number}]: {fault}"
    return None


def of_stage(c: Any, stage: StageSettings) -> Any:
    """The run's settings as they are in a stage."""
    return c.replace(curriculum=None, **stage.overrides()) if stage.overrides() else c
