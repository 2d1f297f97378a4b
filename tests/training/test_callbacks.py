"""Callbacks: every kind of object is called, its requests take effect, and a resumed run stops where it would have."""

import json

import pytest

from grpo_jax.errors import UserError
from grpo_jax.training.callbacks import (
    EVENTS,
    Callbacks,
    EarlyStopping,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)


class Plain:
    """No base class, and two methods only."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append((args, state.global_step, kwargs))

    def on_log(self, args, state, control, logs=None, **kwargs):
        control.should_save = True
        self.seen.append(logs)


def call(callbacks, event, control=None, **given):
    control = control or TrainerControl()
    Callbacks(callbacks).call(event, "args", TrainerState(global_step=3), control, **given)
    return control


def test_an_object_without_a_base_class_is_called():
    plain = Plain()
    assert not call([plain], "on_step_end", model="m").should_save
    assert call([plain], "on_log", logs={"loss": 1.0}).should_save
    call([plain], "on_save")  # has no such method
    assert plain.seen == [("args", 3, {"model": "m"}), {"loss": 1.0}]


def test_the_base_class_has_a_method_for_every_event():
    for event in EVENTS:
        assert getattr(TrainerCallback(), event)(None, TrainerState(), TrainerControl(), metrics={}) is None


def test_every_callback_is_called():
    first, second = Plain(), Plain()
    call([first, second], "on_step_end")
    assert len(first.seen) == len(second.seen) == 1


def test_a_returned_control_takes_effect():
    class Returns:
        def on_step_end(self, args, state, control, **kwargs):
            return TrainerControl(should_training_stop=True)

    assert call([Returns()], "on_step_end").should_training_stop


def test_a_callback_of_transformers_is_called():
    transformers = pytest.importorskip("transformers")

    class Theirs(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_log = True  # the latter means nothing here
            return control

    assert call([Theirs()], "on_step_end", model=None).should_training_stop
    assert not call([Theirs()], "on_evaluate", metrics={}).should_training_stop


class OnlyEpochs:
    def on_epoch_end(self, args, state, control, **kwargs): ...


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (Plain, "Plain is a class; give an instance, Plain(...)"),
        (print, "it has no on_... method of its own; the methods are on_train_begin"),
        (TrainerCallback(), "it has no on_... method of its own"),
        (OnlyEpochs(), "OnlyEpochs: on_epoch_end is never called here; the methods are"),
    ],
)
def test_a_callback_that_is_never_called_is_refused(callback, words):
    with pytest.raises(UserError) as fault:
        Callbacks([Plain(), callback])
    assert words in str(fault.value)


def test_unusable_callbacks_of_transformers_are_refused():
    transformers = pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"it has no on_\.\.\. method of its own"):
        Callbacks([transformers.TrainerCallback()])
    with pytest.raises(UserError, match=r"use grpo_jax.EarlyStopping"):
        Callbacks([transformers.EarlyStoppingCallback()])


def test_a_method_that_is_never_called_is_named_in_a_warning(capsys):
    class Both(Plain):
        def on_epoch_end(self, args, state, control, **kwargs): ...

    Callbacks([Both()])
    assert capsys.readouterr().err == "callbacks: Both.on_epoch_end is never called here\n"
    Callbacks([Plain(), EarlyStopping()])
    assert capsys.readouterr().err == ""


def test_a_new_step_clears_every_request_except_to_stop():
    control = TrainerControl(True, True, True)
    control.new_step()
    assert control == TrainerControl(should_training_stop=True)


# ---- early stopping ----


def feed(stopping, values, control=None):
    """Steps until it stops, or None."""
    control = control or TrainerControl()
    for step, value in enumerate(values, 1):
        logs = {"other": 1.0} if value is None else {stopping.metric: value}
        Callbacks([stopping]).call("on_log", None, TrainerState(), control, logs=logs)
        if control.should_training_stop:
            return step
    return None


NAN = float("nan")


@pytest.mark.parametrize(
    ("settings", "values", "stops"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.2], 4),  # as good is not better
        ({"patience": 2}, [0.1, 0.0, 0.2, 0.1, 0.3], None),  # the count begins anew
        ({"patience": 2}, [0.1, 0.2, 0.1, 0.15], 4),  # better than the last, not than the best
        ({"patience": 2, "threshold": 0.1}, [0.1, 0.15, 0.19], 3),
        ({"patience": 2, "threshold": 0.1}, [0.1, 0.15, 0.25], None),
        ({"patience": 1, "greater_is_better": False}, [3.0, 2.0, 2.5], 3),
        ({"patience": 2}, [0.1, NAN, NAN], 3),
        ({"patience": 2}, [NAN, 0.1, NAN, 0.2], None),
        ({"patience": 1}, [0.1, None, 0.2, 0.2], 4),  # a line without the metric counts as nothing
    ],
)
def test_early_stopping_stops_once_patience_runs_out(settings, values, stops):
    assert feed(EarlyStopping(**settings), values) == stops


def test_an_evaluation_metric_counts_at_evaluations_only():
    evaluated = EarlyStopping("eval/avg", patience=1)
    control = TrainerControl()
    callbacks = Callbacks([evaluated])
    for value in (0.5, 0.5):
        callbacks.call("on_log", None, TrainerState(), control, logs={"reward": 1.0, "eval/avg": value})
    assert not control.should_training_stop
    for value in (0.5, 0.5):
        callbacks.call("on_evaluate", None, TrainerState(), control, metrics={"eval/avg": value})
    assert control.should_training_stop


def test_an_unknown_metric_is_refused():
    with pytest.raises(
        UserError, match=r"metric = 'rewrd': the run has no such metric \(did you mean 'reward'\?\)"
    ):
        Callbacks([EarlyStopping("rewrd")]).call(
            "on_log", None, TrainerState(), TrainerControl(), logs={"reward": 1.0}
        )


@pytest.mark.parametrize(
    "settings", [{"patience": 0}, {"patience": 1.5}, {"threshold": -1}, {"threshold": NAN}]
)
def test_senseless_early_stopping_settings_are_refused(settings):
    with pytest.raises(UserError, match=f"EarlyStopping: {next(iter(settings))} = "):
        EarlyStopping(**settings)


VALUES = [0.1, 0.4, 0.3, 0.35, 0.41, 0.2, 0.3, 0.4, 0.9]


@pytest.mark.parametrize("killed_after", range(len(VALUES)))
def test_a_resumed_run_stops_at_the_same_step(killed_after):
    whole = feed(EarlyStopping(patience=3), VALUES)
    assert whole == 8
    first = Callbacks([Plain(), EarlyStopping(patience=3)])
    stopped = feed(first.callbacks[1], VALUES[:killed_after])
    second = Callbacks([Plain(), EarlyStopping(patience=3)])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    control = TrainerControl()
    second.call("on_train_begin", None, TrainerState(), control)
    assert control.should_training_stop == (stopped is not None), "a run that has stopped stays stopped"
    if stopped is None:
        rest = feed(second.callbacks[1], VALUES[killed_after:])
        assert rest is not None
        assert killed_after + rest == whole


def test_each_callback_gets_its_own_state_back():
    first = Callbacks([EarlyStopping("a", patience=2), Plain(), EarlyStopping("b", patience=2)])
    feed(first.callbacks[0], [0.5, 0.1])
    assert list(first.state_dict()) == ["0:EarlyStopping", "2:EarlyStopping"]
    second = Callbacks(
        [EarlyStopping("a", patience=2), Plain(), EarlyStopping("b", patience=2), EarlyStopping()]
    )
    second.load_state_dict(first.state_dict())
    waited = [(second.callbacks[i].best, second.callbacks[i].waited) for i in (0, 2, 3)]
    assert waited == [(0.5, 1), (None, 0), (None, 0)]
    Callbacks([Plain()]).load_state_dict(first.state_dict())  # fewer than before


def test_an_empty_list_of_callbacks_has_an_empty_state():
    assert Callbacks().state_dict() == Callbacks([]).state_dict() == {}
