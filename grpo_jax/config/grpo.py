"""The settings of `train`, composed of the sections in the other files."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.curriculum import CurriculumSettings
from grpo_jax.config.curriculum import problems as curriculum_problems
from grpo_jax.config.model import ModelSettings, RunSettings
from grpo_jax.config.objective_checks import corrected
from grpo_jax.config.objective_checks import problems as objective_problems
from grpo_jax.config.optimization import AdapterSettings, MemorySettings, ObjectiveSettings, OptimizerSettings
from grpo_jax.config.prompts import DataSettings, EvalSettings, PromptSettings
from grpo_jax.config.sampling import RewardSettings, RolloutSettings, SamplingSettings
from grpo_jax.config.trl_translation import accept


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
        """Translate TRL's names into ours. Refused names stay, so that they are reported with all other errors."""
        return corrected(accept(values, cls.model_fields)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check.first(
            check.length(self),
            check.warmup(self),
            check.schedule(self),
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
        """A length in epochs replaces one in steps."""
        return super().written() | ({} if self.num_train_epochs is None else {"max_steps": -1})
