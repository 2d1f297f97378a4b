"""Saving and evaluating by epochs, and ending with the best model, as transformers' Trainer does."""

import json

import pytest

from grpo_jax import GRPOConfig, GRPOTrainer, UserError
from grpo_jax.commands.export import export_command
from grpo_jax.training.callbacks import TrainerCallback, TrainerControl, TrainerState
from grpo_jax.training.script_callbacks import BestModel, EpochEnd, callbacks_of

BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward"}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch"}


class Steps(TrainerCallback):
    """The step of each event."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(("begin", state.global_step))

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(("end", state.global_step))


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """(folder, trainer, its result) of three epochs of two rollouts with two updates, the second evaluated best."""
    folder = tmp_path_factory.mktemp("best") / "run"
    rows = [{"prompt": f"{i}: say a", "held_out": i >= 8} for i in range(10)]
    figures = {4: 0.2, 8: 0.9}

    def reward(completions, held_out, trainer_state, **columns):
        if held_out[0]:
            return [figures.get(trainer_state.global_step, 0.5)] * len(completions)
        return [float(sum(map(str.islower, text))) for text in completions]

    args = GRPOConfig(
        output_dir=str(folder),
        num_generations=2,
        per_device_train_batch_size=4,
        steps_per_generation=2,
        num_train_epochs=3,
        max_completion_length=8,
        save_total_limit=1,
        learning_rate=1e-2,
        mesh="data=1",
        **EPOCHS,
        **BEST,
    )
    trainer = GRPOTrainer(str(tiny_model), reward, args, rows[:8], rows[8:], callbacks=[Steps()])
    return folder, trainer, trainer.train()


def test_evaluations_and_checkpoints_come_at_the_end_of_each_epoch(run):
    folder, trainer, _ = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/reward" in line] == [2, 4]
    evaluated = {
        line["step"]: line["eval_reward"] for line in trainer.state.log_history if "eval_reward" in line
    }
    assert evaluated == pytest.approx({0: 0.5, 4: 0.2, 8: 0.9, 12: 0.5})


def test_the_best_checkpoint_is_kept_beside_the_newest_and_is_the_runs_model(run, tmp_path):
    folder, trainer, result = run
    assert sorted(int(each.name) for each in (folder / "checkpoints").iterdir() if each.name.isdigit()) == [
        4,
        6,
    ]
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (8, pytest.approx(0.9))
    export_command(str(folder), str(tmp_path / "best"), step=4, quiet=True)
    export_command(str(folder), str(tmp_path / "last"), step=6, quiet=True)
    exported, best, last = (
        (place / "model.safetensors").read_bytes()
        for place in (folder / "hf", tmp_path / "best", tmp_path / "last")
    )
    assert exported == best, "the weights of step 4"
    assert best != last
    assert result["steps"] == 6, "rollouts"


def test_a_step_is_an_update_to_callbacks_rewards_and_the_log_history_as_in_trl(run):
    """One rollout makes two: `on_step_begin` comes before it, `on_step_end` after both."""
    _, trainer, result = run
    (steps,) = (each for each in trainer.callback_handler.callbacks.callbacks if isinstance(each, Steps))
    assert steps.seen == [event for n in range(0, 12, 2) for event in (("begin", n), ("end", n + 2))]
    assert result.global_step == trainer.state.global_step == trainer.state.max_steps == 12
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2, 4, 6, 8, 10, 12]


def test_a_resumed_run_counts_its_history_in_updates_too(run):
    _, trainer, _ = run
    assert trainer.train().global_step == 12
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2, 4, 6, 8, 10, 12]


def test_a_run_without_strategies_asks_for_no_callbacks():
    assert callbacks_of(GRPOConfig()) == []


def test_the_end_of_an_epoch_is_noticed_once_and_after_a_resume():
    callback, state, control = EpochEnd(evaluate=True, save=False), TrainerState(epoch=1.75), TrainerControl()
    callback.on_train_begin(None, state, control)
    asked = []
    for state.epoch in (1.9, 2.0, 2.2, 4.1):
        control.new_step()
        callback.on_step_end(None, state, control)
        asked.append((control.should_evaluate, control.should_save))
    assert asked == [(False, False), (True, False), (False, False), (True, False)]


@pytest.mark.parametrize(
    ("metric", "greater", "values", "best"),
    [
        ("eval_reward", None, [1.0, 3.0, 3.0, 2.0], 2),
        ("reward", False, [1.0, 3.0, 0.5], 3),
        ("eval_loss", None, [1.0, 0.2, 0.5], 2),
        ("eval/reward", None, [float("nan"), 1.0], 2),
    ],
)
def test_the_first_of_the_best_steps_is_remembered_and_saved(metric, greater, values, best):
    callback, state, control = BestModel(metric, greater), TrainerState(), TrainerControl()
    callback.on_evaluate(
        None, state, control, metrics={callback.metric: 9.0 if best != 3 else -9.0}
    )  # before training
    for state.global_step, value in enumerate(values, start=1):
        control.new_step()
        callback.on_evaluate(None, state, control, metrics={callback.metric: value})
        assert control.should_save == (callback.step == state.global_step)
    again = BestModel(metric, greater)
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert callback.step == again.step == best


def test_a_metric_that_the_evaluation_lacks_is_refused():
    with pytest.raises(UserError, match=r"metric_for_best_model = eval/rewrd: .*did you mean 'eval/reward'"):
        BestModel("eval_rewrd").on_evaluate(
            None, TrainerState(), TrainerControl(), metrics={"eval/reward": 1.0}
        )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (EPOCHS | {"load_best_model_at_end": True}, "metric_for_best_model = None"),
        (BEST, "eval_strategy is no and save_strategy steps"),
        (BEST | {"eval_strategy": "epoch"}, "they must be the same"),
        (
            BEST | {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 10},
            "no multiple of eval_steps, 3",
        ),
        (BEST | EPOCHS | {"output_dir": None}, "without output_dir"),
        ({"save_strategy": "best"}, "save_strategy = 'best'"),
    ],
)
def test_strategies_that_do_not_fit_together_are_refused(values, says):
    with pytest.raises(UserError, match=says):
        GRPOConfig(**values)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, (0, 500)),
        ({"eval_steps": 7}, (7, 500)),
        ({"eval_strategy": "steps"}, (10, 500)),
        ({"eval_strategy": "steps", "logging_steps": 4}, (4, 500)),
        ({"eval_strategy": "no", "eval_steps": 7}, (0, 500)),
        (EPOCHS, (0, 0)),
        ({"save_strategy": "no", "save_steps": 7}, (0, 0)),
    ],
)
def test_a_strategy_decides_what_the_numbers_of_steps_mean(values, steps):
    ours, _ = GRPOConfig(**values).in_rollouts(1)
    assert (ours.eval_steps, ours.save_steps) == steps


def test_an_evaluation_without_rows_is_refused_as_in_transformers(tiny_model):
    with pytest.raises(UserError, match="eval_strategy = epoch: no eval_dataset is given"):
        GRPOTrainer(
            str(tiny_model), lambda completions: [], GRPOConfig(eval_strategy="epoch"), [{"prompt": "a"}]
        )
