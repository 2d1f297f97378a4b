"""Callbacks: objects with `on_...` methods, as in TRL and transformers.

    def on_step_end(self, args, state, control, **kwargs): ...

`args` are the settings, `state` says where the run is, and `control` asks for something: to stop, to save, to
evaluate. Any object with such methods will do, a `transformers.TrainerCallback` too.
"""

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.errors import UserError, nearest

EVENTS = (
    "on_train_begin",
    "on_step_begin",
    "on_step_end",
    "on_evaluate",
    "on_save",
    "on_log",
    "on_train_end",
)


@dataclass(kw_only=True)
class TrainerState:
    """The progress of a run. A step is one rollout and its updates; in a script with TRL's batch sizes, `global_step`
    and `max_steps` count the updates."""

    global_step: int = 0  # steps done, or updates
    max_steps: int = 0
    epoch: float = 0.0  # passes over the prompts
    log_history: list[dict[str, Any]] = field(
        default_factory=list
    )  # the metrics of each step since the start
    best_metric: float | None = None  # with load_best_model_at_end, and the step that it was reached at
    best_global_step: int | None = None
    is_world_process_zero: bool = True  # callbacks run on every host: write files on this one only
    is_local_process_zero: bool = True  # and print on this one: the same one here


@dataclass
class TrainerControl:
    """What callbacks ask the trainer to do."""

    should_training_stop: bool = False  # after this step, as if it were the last
    should_save: bool = False
    should_evaluate: bool = (
        False  # in on_step_begin or on_step_end: metrics are complete when on_log gets them
    )

    def new_step(self) -> None:
        """Clear the requests of the step before, except the one to stop."""
        self.should_save = self.should_evaluate = False


class TrainerCallback:
    """A callback that does nothing: override what is needed.

    A callback whose behaviour depends on what it has seen may also have `state_dict()`, which returns JSON values,
    and `load_state_dict(values)`: they travel with the checkpoints, and make a resumed run go on exactly.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """Before the first step of this process, of a resumed run too."""

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """Before each rollout."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """After each step's updates; a request made here is carried out at once."""

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """After each evaluation; `metrics`: its `eval/...` values."""

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """After each checkpoint."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """After each step's line of metrics; `logs`: the metrics."""

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """After the last step."""


class EarlyStopping(TrainerCallback):
    """Stops the training when a metric has not improved for a while.

    Args:
        metric: a metric of the steps, or one that starts with `eval`, which is looked at after each evaluation.
        patience: values in a row that are not better than the best so far.
        threshold: by how much a value must be better to count.
        greater_is_better: False for metrics such as a loss.
    Raises:
        UserError: values that make no sense; in training, a metric that the run does not have.
    """

    def __init__(
        self,
        metric: str = "reward",
        patience: int = 1,
        threshold: float = 0.0,
        greater_is_better: bool = True,
    ):
        if type(patience) is not int or patience < 1:
            raise UserError(f"EarlyStopping: patience = {patience!r}: must be a whole number above 0")
        if not threshold >= 0:
            raise UserError(f"EarlyStopping: threshold = {threshold!r}: must be at least 0")
        self.metric, self.patience = metric, patience
        self.threshold, self.greater_is_better = threshold, greater_is_better
        self.best: float | None = None
        self.waited = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A run that has stopped stays stopped when it is started again."""
        self._ask(control)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.metric.startswith("eval"):
            self._see(kwargs["metrics"], control)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.metric.startswith("eval"):
            self._see(kwargs["logs"], control)

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the number of worse ones after it."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.waited = values["best"], values["waited"]

    def _see(self, metrics: Mapping[str, Any], control: TrainerControl) -> None:
        value = metrics.get(self.metric)
        if value is None and self.best is None and self.waited == 0:
            hint = nearest(self.metric, metrics)
            raise UserError(f"EarlyStopping: metric = {self.metric!r}: the run has no such metric{hint}")
        if value is None:
            return
        if self._is_better(float(value)):
            self.best, self.waited = float(value), 0
        else:
            self.waited += 1
        self._ask(control)

    def _is_better(self, value: float) -> bool:
        if self.best is None or math.isnan(value):
            return not math.isnan(value)
        gain = value - self.best if self.greater_is_better else self.best - value
        return gain > self.threshold

    def _ask(self, control: TrainerControl) -> None:
        if self.waited >= self.patience:
            control.should_training_stop = True


class Callbacks:
    """Callbacks, called one after the other.

    Raises:
        UserError: one of them is a class, or has no method that is ever called.
    """

    def __init__(self, callbacks: Sequence[Any] | None = None):
        if callbacks is not None and not isinstance(callbacks, list | tuple):
            raise UserError(f"callbacks: {callbacks!r:.80} is no list; write callbacks=[...]")
        self.callbacks = list(callbacks or ())
        for callback in self.callbacks:
            _check(callback)
        self._anew = copy.deepcopy(self.state_dict())

    def add(self, callback: Any) -> None:
        """Add a callback, which is called after the others."""
        _check(callback)
        self.callbacks.append(callback)
        name = self._name(len(self.callbacks) - 1)
        if name in (states := self.state_dict()):
            self._anew[name] = copy.deepcopy(states[name])

    def remove(self, callback: Any) -> None:
        """Remove a callback, or the first one of a class. UserError if there is none."""
        found = next((c for c in self.callbacks if c is callback or type(c) is callback), None)
        if found is None:
            raise UserError(f"remove_callback: {callback!r:.80} is not among the callbacks")
        self.callbacks.remove(found)

    def call(self, event: str, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Call `event` of every callback that has it. `control` gets their requests, also those returned."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            answer = None if method is None else method(args, state, control, **given)
            if answer is not None and answer is not control:
                for name in vars(control):
                    setattr(control, name, bool(getattr(answer, name, getattr(control, name))))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The states of the callbacks that have one, as JSON values."""
        return {
            self._name(i): callback.state_dict()
            for i, callback in enumerate(self.callbacks)
            if hasattr(callback, "state_dict")
        }

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore each callback's state. One without a state starts afresh, also in a second run of the same object."""
        states = {**copy.deepcopy(self._anew), **states}
        for i, callback in enumerate(self.callbacks):
            if hasattr(callback, "load_state_dict") and self._name(i) in states:
                callback.load_state_dict(states[self._name(i)])

    def _name(self, index: int) -> str:
        return f"{index}:{type(self.callbacks[index]).__name__}"


def _check(callback: Any) -> None:
    """Raise UserError for an object without any known event; warn of methods that are never called."""
    if isinstance(callback, type):
        raise UserError(
            f"callbacks: {callback.__name__} is a class; give an instance, {callback.__name__}(...)"
        )
    name = type(callback).__name__
    if _is_from_transformers(callback, "EarlyStoppingCallback"):
        raise UserError(
            f"callbacks: {name} reads settings of transformers; use grpo_jax.EarlyStopping(metric=...)"
        )
    own = _own_events(callback)
    never = [event for event in own if event not in EVENTS]
    if len(never) == len(own):
        why = f"{never[0]} is never called here" if never else "it has no on_... method of its own"
        raise UserError(f"callbacks: {name}: {why}; the methods are {', '.join(EVENTS)}")
    if never:
        print(f"callbacks: {name}.{never[0]} is never called here", file=sys.stderr, flush=True)


def _own_events(callback: Any) -> list[str]:
    """Its `on_...` methods, except those inherited from `TrainerCallback`, which do nothing."""
    bases = [base for base in type(callback).__mro__ if base.__name__ == "TrainerCallback"]
    idle = lambda name: any(vars(base).get(name) is getattr(type(callback), name, callback) for base in bases)
    names = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
    return [name for name in names if not idle(name)]


def _is_from_transformers(callback: Any, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.startswith("transformers.")
        for base in type(callback).__mro__
    )
