"""What a script's settings ask for between steps, as callbacks: saving and evaluating at the end of an epoch, and the
best model."""

import math
from collections.abc import Mapping
from typing import Any

from grpo_jax.config import GRPOConfig, ScriptConfig
from grpo_jax.errors import UserError, nearest
from grpo_jax.training.callbacks import TrainerCallback, TrainerControl, TrainerState


class EpochEnd(TrainerCallback):
    """Asks for an evaluation or a checkpoint after the step in which an epoch ends."""

    def __init__(self, evaluate: bool, save: bool):
        self.evaluate, self.save = evaluate, save
        self.epoch = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.epoch = int(state.epoch)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if int(state.epoch) > self.epoch:
            self.epoch = int(state.epoch)
            control.should_evaluate |= self.evaluate
            control.should_save |= self.save


class BestModel(TrainerCallback):
    """Remembers the step after which a metric of the evaluation was best, and asks for its checkpoint.

    Args:
        metric: with or without TRL's `eval_` before it.
        greater_is_better: None: unless the name ends with loss.
    """

    def __init__(self, metric: str, greater_is_better: bool | None = None):
        self.metric = "eval/" + metric.removeprefix("eval_").removeprefix("eval/")
        self.sign = (
            1 if (not metric.endswith("loss") if greater_is_better is None else greater_is_better) else -1
        )
        self.best: float | None = None
        self.step: int | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.best_metric, state.best_global_step = self.best, self.step

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        if self.metric not in metrics:
            hint = nearest(self.metric, metrics)
            raise UserError(f"metric_for_best_model = {self.metric}: the evaluation has no such metric{hint}")
        value = float(metrics[self.metric])
        better = not math.isnan(value) and (self.best is None or self.sign * (value - self.best) > 0)
        if state.global_step and better:  # the starting model is none of the run's
            self.best, self.step = value, state.global_step
            state.best_metric, state.best_global_step = self.best, self.step
            control.should_save = True

    def state_dict(self) -> dict[str, Any]:
        """The best value, and its step."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.step = values["best"], values["step"]


def callbacks_of(config: GRPOConfig) -> list[TrainerCallback]:
    """The callbacks that a script's settings ask for; none for other settings."""
    if not isinstance(config, ScriptConfig):
        return []
    found: list[TrainerCallback] = []
    if "epoch" in (config.eval_strategy, config.save_strategy):
        found.append(EpochEnd(config.eval_strategy == "epoch", config.save_strategy == "epoch"))
    if config.load_best_model_at_end:
        assert config.metric_for_best_model is not None
        found.append(BestModel(config.metric_for_best_model, config.greater_is_better))
    return found
