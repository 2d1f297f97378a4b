"""What is drawn when: mixtures of data sets, stages of a training, prompts that sit out."""

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
"""The settings that a stage may say anew."""

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
    """What it is called; none: its number."""
    mixture: Shares | None = None
    """The weights of the data sets in this stage; one that is not named takes no part; none: the run's own mixture."""
    where: Mapped | None = None
    """Only rows with these values: {column: value} or {column: [values]}; none: all."""
    until_step: Positive | None = None
    """The stage ends when so many steps of the run are done."""
    until_epochs: float | None = Field(None, gt=0)
    """It ends when its prompts were drawn so many times."""
    until_plateau: float | None = None
    """It ends when the mean reward of `window` steps is not this much above that of the `window` steps before."""
    until_clipped: float | None = Field(None, gt=0, le=1)
    """It ends when this share of the completions of `window` steps was cut at the limit."""
    window: Positive = 20
    """Steps that until_plateau and until_clipped look at."""
    max_completion_length: Positive | None = None
    """Instead of the run's own, as the next three."""
    num_generations: int | None = Field(None, ge=2)
    """Completions of each prompt."""
    temperature: float | None = Field(None, gt=0)
    """Logits are divided by it."""
    overlong_buffer: Count | None = None
    """Tokens before the limit in which the punishment of long completions grows."""

    @property
    def ends(self) -> bool:
        """Whether anything ends it."""
        return any(getattr(self, name) is not None for name in TRIGGERS)

    def overrides(self) -> dict[str, Any]:
        """What it says anew of the run's settings."""
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
    """Curriculum: which prompts come when."""

    mixture: Shares | None = None
    """The weights of several data sets, {name: weight}; none: in proportion to their prompts."""
    curriculum: Annotated[list[StageSettings], BeforeValidator(stages)] | None = None
    """Stages one after another, each a mapping: mixture and where say what is drawn; until_step, until_epochs,
    until_plateau and until_clipped what ends it (of the last: the run); max_completion_length, num_generations,
    temperature and overlong_buffer may differ; none: one stage."""
    history_resampling: bool = False
    """Leave a prompt out of later epochs when all of its completions succeeded (SRPO): it teaches nothing any more."""
    pass_rate_window: Annotated[list[float], BeforeValidator(read_mapping)] | None = None
    """[low, high]: only prompts whose share of successes lies between them, neither included, take part in an epoch:
    by the column pass_rate, or as last seen; those never seen always do; none: all."""
    pass_rate_retry: Count = 0
    """Epochs after which a prompt that was left out is tried again; 0: never."""

    @field_serializer("curriculum")
    def _only_what_is_said(self, value: list[StageSettings] | None) -> list[dict[str, Any]] | None:
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
    """What must hold between these settings and the others."""
    epochs = (
        f"num_train_epochs = {c.num_train_epochs}: with a curriculum max_steps says how long the run is at most"
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
