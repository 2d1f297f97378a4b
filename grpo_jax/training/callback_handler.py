"""Calls the callbacks of a run and keeps their requests: to stop, to evaluate, to save."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from grpo_jax.config import GRPOConfig
from grpo_jax.sharding import hosts
from grpo_jax.training.callbacks import Callbacks, TrainerControl, TrainerState
from grpo_jax.training.run_state import RunState
from grpo_jax.training.script_api import TrainOutput
from grpo_jax.training.script_callbacks import BestModel


class CallbackHandler:
    """Tells callbacks what happens, and keeps what they decide. The order is that of transformers' Trainer, but
    for evaluations: they come before the step's log, of which their figures are a part.

    Every process of a run has its own callbacks; what one of them asks for, all do.

    Args:
        updates: of a step. A script in TRL's words counts them: its `global_step` grows by so many at each step.
    """

    def __init__(self, config: GRPOConfig, callbacks: Sequence[Any], prompts: int, updates: int = 1):
        self.config, self.callbacks, self.prompts = config, Callbacks(callbacks), prompts
        self.updates = updates
        first = hosts.is_writer()
        self.state = TrainerState(
            max_steps=config.max_steps * updates, is_world_process_zero=first, is_local_process_zero=first
        )
        self.control = TrainerControl()

    def begin(self, done: int, run_state: RunState, history: list[dict[str, Any]]) -> None:
        """The run starts, or resumes after `done` steps from `run_state`."""
        self.control = TrainerControl()
        self._count(done, run_state)
        self.state.log_history = [{**line, "step": line["step"] * self.updates} for line in history]
        self.callbacks.load_state_dict(run_state.callbacks)
        self._call("on_train_begin")

    def for_rewards(self) -> TrainerState:
        """The `trainer_state` of reward functions: without the log history, which grows with every step."""
        return replace(self.state, log_history=[])

    def step_begins(self) -> None:
        """Before the prompts of a step."""
        self.control.new_step()
        self._call("on_step_begin")

    def step_ends(self, done: int, run_state: RunState) -> None:
        """After a step's update; `done` counts it."""
        self._count(done, run_state)
        self._call("on_step_end")

    def logged(self, metrics: dict[str, Any]) -> None:
        """After a step's metrics are written."""
        self.state.log_history.append(self._now() | metrics)
        self._call("on_log", logs=metrics)

    def evaluated(self, metrics: dict[str, float]) -> None:
        """After held-out prompts were evaluated; `metrics` are under `eval/`."""
        if metrics:
            named = {name.replace("/", "_", 1): value for name, value in metrics.items()}  # as TRL names them
            self.state.log_history.append(self._now() | named)
            self._call("on_evaluate", metrics=metrics)

    def output(self, summary: dict[str, Any]) -> TrainOutput:
        """The summary as scripts read it, with the mean loss of the steps."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        return TrainOutput(summary, self.state.global_step, fmean(losses) if losses else math.nan)

    def saved(self) -> None:
        """After a checkpoint was begun."""
        self._call("on_save")

    def end(self, curriculum_over: bool = False) -> None:
        """After the last step. A run that a callback or the end of the curriculum has stopped is over, also for the
        command that comes again."""
        self._call("on_train_end")
        done, total = self.state.global_step // self.updates, self.config.max_steps
        if done < total and hosts.is_writer():
            why = ": the curriculum has ended" if curriculum_over else ", as a callback asked"
            print(f"stopped after step {done} of {total}{why}", file=sys.stderr, flush=True)

    def asks(self, wish: str) -> bool:
        """Whether a callback of any process asked for `training_stop`, `save` or `evaluate` in this step."""
        return hosts.any_process(getattr(self.control, f"should_{wish}"))

    def evaluation_is_due(self, done: int) -> bool:
        """Whether `eval_steps` or a callback asks for an evaluation; one follows the last step in any case."""
        every = self.config.eval_steps
        wanted = self.asks("evaluate") or (every > 0 and done % every == 0)
        return wanted and done < self.config.max_steps

    def best_step(self) -> int | None:
        """The step whose model is the run's in the end, by `load_best_model_at_end`; None: the last."""
        best = next((each.step for each in self.callbacks.callbacks if isinstance(each, BestModel)), None)
        return None if best is None else best // self.updates

    def _now(self) -> dict[str, Any]:
        return {"step": self.state.global_step, "epoch": self.state.epoch}

    def _count(self, done: int, run_state: RunState) -> None:
        self.state.global_step = done * self.updates
        self.state.epoch = run_state.curriculum.total / self.prompts

    def _call(self, event: str, **given: Any) -> None:
        self.callbacks.call(event, self.config, self.state, self.control, **given)
