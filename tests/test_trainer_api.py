"""`GRPOTrainer` from Python: what it refuses, when it calls callbacks, when it stops, and how it resumes."""

import json
import re
import sys
import types
from pathlib import Path

import cloudpickle
import optax
import pytest
import yaml

from grpo_jax import EarlyStopping, GRPOConfig, GRPOTrainer, TrainerCallback, UserError
from grpo_jax.cli import main
from grpo_jax.setup.run import open_run
from grpo_jax.sharding import hosts
from grpo_jax.training.callback_handler import CallbackHandler
from grpo_jax.training.script_api import place_model

pytestmark = pytest.mark.usefixtures("shared_programs")

# Reward workers get functions of this file themselves, and need not import it, with all that it imports.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = [{"prompt": f"{i}: say a"} for i in range(16)]
CLOCKS = ("time/", "compilations/", "step_time", "tokens_per_second", "rollout_tokens", "peak_memory")


def vowels(completions, **columns):
    return [float(sum(letter in "aeiouAEIOU" for letter in text)) for text in completions]


def zero(completions, **columns):
    return [0.0 for _ in completions]


def arguments(**changes):
    """A constant learning rate: then the program of an update does not depend on the length of the run."""
    small = {"max_steps": 4, "prompts_per_step": 8, "num_generations": 2, "max_completion_length": 8}
    small |= {"max_prompt_length": 32, "mesh": "data=1", "learning_rate": 1e-2, "reward_workers": 1}
    small |= {"lr_scheduler_type": "constant", "output_dir": None, "log_completions_steps": 0}
    return GRPOConfig(
        **small | {key: str(v) if key == "output_dir" and v else v for key, v in changes.items()}
    )


@pytest.fixture(scope="module")
def make(tiny_model):
    """`make(args, **given)`: a trainer on the tiny model."""
    given = {"model": tiny_model, "reward_funcs": vowels, "train_dataset": ROWS}
    return lambda args=None, **changes: GRPOTrainer(**given | {"args": args or arguments()} | changes)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clocks(folder):
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in metrics_of(folder)]


def checkpoints_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


# ---- what is refused, and what to do instead ----


def torch_model():
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(2, 2)


def torch_optimizer():
    torch = pytest.importorskip("torch")
    return torch.optim.SGD(torch_model().parameters(), lr=0.1)


def stream():
    return pytest.importorskip("datasets").Dataset.from_list(ROWS).to_iterable_dataset()


def named():
    datasets = pytest.importorskip("datasets")
    return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))


REFUSED = [
    ("model", torch_model, "model: a Linear object; give a folder, a hub id, or a model of transformers"),
    ("reward_funcs", list, "reward_funcs: an empty list; give at least one function"),
    ("reward_funcs", lambda: 3, "rewards: 3 is a int, not a function; give a function"),
    ("reward_funcs", torch_model, "reward_funcs: Linear is a PyTorch model; save it by save_pretrained"),
    (
        "reward_funcs",
        lambda: [vowels, vowels],
        "two functions are called 'vowels'; give one another __name__",
    ),
    ("args", lambda: {"max_steps": 2}, "args: a builtins.dict; give a grpo_jax.GRPOConfig"),
    ("train_dataset", stream, r"train_dataset: a stream of rows has no end; .*list\(rows.take\(10000\)\)"),
    ("eval_dataset", stream, "eval_dataset: a stream of rows has no end"),
    ("train_dataset", lambda: (row for row in ROWS), "train_dataset: a stream of rows has no end"),
    ("train_dataset", named, r"train_dataset: several data sets by name, \['train'\]; give one of them"),
    ("eval_dataset", named, r"eval_dataset: several data sets by name, \['train'\]; give one of them"),
    (
        "train_dataset",
        lambda: "trl-lib/tldr",
        r"train_dataset: 'trl-lib/tldr'; .*in the settings \(dataset\)",
    ),
    (
        "train_dataset",
        lambda: [*ROWS, {"prompt": "a", "image": b"..."}],
        "train_dataset, row 17: a column 'image'; the models here read text only",
    ),
    ("eval_dataset", lambda: [{"prompt": "a", "images": []}], "eval_dataset, row 1: a column 'images'"),
    ("train_dataset", lambda: 3, "train_dataset: 3 has no rows; give a list of dicts or a datasets.Dataset"),
    ("train_dataset", list, "train_dataset: no rows; give some"),
    ("eval_dataset", list, "eval_dataset: no rows; give some"),
    (
        "train_dataset",
        lambda: [*ROWS, ("a",)],
        r"train_dataset, row 17: \('a',\) is no dict; give rows such as",
    ),
    ("train_dataset", lambda: [{"question": "a"}], "no column 'prompt' among question; set prompt_column"),
    ("optimizers", torch_optimizer, "optimizers: SGD; give an optax transformation, such as optax.adamw"),
    ("optimizers", lambda: (torch_optimizer(), None), "optimizers: SGD; give an optax transformation"),
    ("optimizers", lambda: (optax.sgd(1.0), len), "optimizers: .*; give an optax transformation"),
    ("optimizers", lambda: optax.sgd, "optimizers: function; give an optax transformation"),
    ("callbacks", lambda: [TrainerCallback], "callbacks: TrainerCallback is a class; give an instance"),
    ("callbacks", lambda: EarlyStopping(), r"callbacks: .* is no list; write callbacks=\[\.\.\.\]"),
    ("peft_config", object, "peft_config: .* has no rank r; give peft.LoraConfig"),
    (
        "peft_config",
        lambda: {"r": 4, "use_dora": True},
        "peft_config: use_dora = True is not supported; leave it out",
    ),
    (
        "peft_config",
        lambda: {"r": 4, "modules_to_save": ["lm_head"]},
        r"peft_config: modules_to_save = \['lm_head'\]: embedding and head stay frozen beside adapters; leave it out",
    ),
    (
        "peft_config",
        lambda: {"r": 4, "target_modules": ["lm_head"]},
        "lora_target_modules = .*lm_head has no adapter here; leave it out, or set lora_r to 0",
    ),
    ("tools", lambda: [len], "tools: completions are not interrupted by tools here; leave it out"),
    ("reward_processing_classes", object, "reward_processing_classes: .* is no tokenizer"),
    ("rollout_func", lambda: len, "rollout_func: sampling is compiled here; leave it out"),
    ("environment_factory", lambda: len, "environment_factory: a prompt is answered in one turn here"),
    ("quantization_config", dict, "quantization_config: {} asks for neither load_in_4bit nor load_in_8bit"),
    ("tokenizer", object, "tokenizer: give it as processing_class"),
    ("config", arguments, "config: give it as args"),
    (
        "processing_class",
        lambda: "Qwen",
        "processing_class: 'Qwen' is no tokenizer; give one of transformers",
    ),
    (
        "optimizer",
        lambda: None,
        r"optimizer: GRPOTrainer has no such argument \(did you mean 'optimizers'\?\)",
    ),
    ("reward_fns", lambda: None, r"no such argument \(did you mean 'reward_funcs'\?\)"),
]


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_unsupported_arguments_are_refused_with_advice(make, name, value, says):
    with pytest.raises(UserError, match=says) as refused:
        make(**{name: value()})
    assert len(str(refused.value)) < 250


def test_reward_weights_must_match_the_reward_functions(make):
    args = arguments(reward_weights=[1.0, 2.0])
    with pytest.raises(UserError, match=r"reward_weights = \[1.0, 2.0\]: there are 3 reward functions"):
        make(args, reward_funcs=[vowels, zero, "think_format_reward"])


def test_trls_defaults_are_accepted(make):
    """TRL's own defaults, spelled out."""
    make(
        peft_config=None, reward_processing_classes=None, tools=None, optimizers=(None, None), callbacks=None
    )


# ---- callbacks ----


class Recorder:
    """Records the events of a run, and asks for an evaluation and checkpoints. It needs no base class."""

    def __init__(self):
        self.events = []

    def record(self, event, args, state, **given):
        assert args.num_generations == 2
        self.events.append((event, state.global_step))
        self.epoch, self.history = state.epoch, list(state.log_history)
        vars(self).update(given)

    def on_train_begin(self, args, state, control, **kwargs):
        self.record("train_begin", args, state)

    def on_step_begin(self, args, state, control, **kwargs):
        self.record("step_begin", args, state)

    def on_step_end(self, args, state, control, **kwargs):
        self.record("step_end", args, state)
        control.should_save, control.should_evaluate = state.global_step == 1, state.global_step == 3

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.record("evaluate", args, state, metrics=metrics)
        control.should_save = state.global_step == 2

    def on_log(self, args, state, control, logs, **kwargs):
        self.record("log", args, state, logs=logs)

    def on_save(self, args, state, control, **kwargs):
        self.record("save", args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.record("train_end", args, state)


def timed(completions, trainer_state, log_metric, **columns):
    log_metric("seen", float(trainer_state.global_step))
    return [float(trainer_state.global_step) for _ in completions]


@pytest.fixture(scope="module")
def again(make, tmp_path_factory):
    """`again()`: a trainer of the run of four steps that `recorded` has made, or makes."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    args = arguments(output_dir=folder, eval_steps=2, save_steps=0, reward_weights=[1.0, 100.0])
    return lambda: make(args, reward_funcs=[vowels, timed], eval_dataset=ROWS[:4])


@pytest.fixture(scope="module")
def recorded(again):
    """A run of four steps as scripts do it: recorder, trainer, folder, summary, and the evaluation before."""
    trainer, recorder = again(), Recorder()
    before = trainer.evaluate()
    trainer.add_callback(recorder)
    summary = trainer.train(resume_from_checkpoint=True)
    return types.SimpleNamespace(
        recorder=recorder,
        trainer=trainer,
        folder=Path(trainer.args.output_dir),
        summary=summary,
        history=list(trainer.state.log_history),
        before=before,
    )


def test_callbacks_get_the_events_in_order(recorded):
    expected = """
        train_begin 0, evaluate 0,
        step_begin 0, step_end 1, log 1, save 1,
        step_begin 1, step_end 2, evaluate 2, log 2, save 2,
        step_begin 2, step_end 3, evaluate 3, log 3,
        step_begin 3, step_end 4, log 4, save 4,
        evaluate 4, train_end 4"""
    events = re.findall(r"(\w+) (\d)", expected)
    assert recorded.recorder.events == [(event, int(step)) for event, step in events]


def test_a_checkpoint_that_a_callback_asks_for_is_written(recorded):
    """After step 1, and by on_evaluate after step 2; the last one is due anyway."""
    assert checkpoints_of(recorded.folder) == [1, 2, 4]


def test_an_evaluation_that_a_callback_asks_for_is_done(recorded):
    assert ["eval/reward" in row for row in metrics_of(recorded.folder)] == [False, True, True, False]


def test_callbacks_see_the_metrics_that_are_written(recorded):
    recorder, rows = recorded.recorder, metrics_of(recorded.folder)
    assert recorder.metrics == {f"eval/{name}": value for name, value in recorded.summary["after"].items()}
    assert {"step": 4, **recorder.logs} == rows[-1]
    logged = [line for line in recorder.history if "loss" in line]
    assert [{name: value for name, value in line.items() if name != "epoch"} for line in logged] == rows
    assert recorder.epoch == 4 * 8 / 16


def test_only_the_writing_host_is_process_zero_to_callbacks(monkeypatch):
    state = lambda: CallbackHandler(arguments(), (), len(ROWS)).state
    assert state().is_world_process_zero
    assert state().is_local_process_zero
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    assert not state().is_world_process_zero
    assert not state().is_local_process_zero


def test_training_twice_with_early_stopping_stops_at_the_same_step(make):
    """Without a folder, training again is a new run: the request to stop and the state of the callback are cleared.
    The first evaluation comes before training; the two after it are not better by the threshold and end the run."""
    stopping = EarlyStopping("eval/reward", patience=2, threshold=1e9)
    trainer = make(arguments(eval_steps=1), eval_dataset=ROWS[:4], callbacks=[stopping])
    first, second = trainer.train(), trainer.train()
    assert first["steps"] == second["steps"] == 2
    assert first["num_tokens"] == second["num_tokens"]

    trainer.add_callback(EarlyStopping("rewards"))
    with pytest.raises(
        UserError, match=r"metric = 'rewards': the run has no such metric \(did you mean 'reward"
    ):
        trainer.train()


# ---- a run that ends early, killed on its way there ----


class Kill(TrainerCallback):
    """Kills the run between the steps 3 and 4, when the checkpoint after step 2 is the newest."""

    class Killed(BaseException):
        pass

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise self.Killed


@pytest.fixture(scope="module")
def start(make, tmp_path_factory):
    """`start(name, *callbacks)`: (the folder, the summary) of a run of six steps, which early stopping ends after five,
    with a momentum to carry along."""
    home = tmp_path_factory.mktemp("interrupted")

    def run(name, *callbacks):
        args = arguments(output_dir=home / name, max_steps=6, save_steps=2)
        trainer = make(args, optimizers=optax.sgd(0.1, momentum=0.9), callbacks=callbacks)
        return home / name, trainer.train()

    return run


def after_five_steps():
    return EarlyStopping(patience=4, threshold=1e9)


@pytest.fixture(scope="module")
def stopped(start):
    """(the folder, the summary) of a run that a callback stops."""
    return start("whole", after_five_steps())


@pytest.fixture(scope="module")
def interrupted(start, stopped):
    """The folders of that run and of one that was killed and started again."""
    with pytest.raises(Kill.Killed):
        start("killed", after_five_steps(), Kill())
    killed = stopped[0].with_name("killed")
    assert checkpoints_of(killed) == [2]
    return stopped[0], start("killed", after_five_steps())[0]


def test_a_stopped_run_leaves_metrics_checkpoint_export_and_summary(stopped):
    folder, summary = stopped
    assert summary["steps"] == len(metrics_of(folder)) == 5
    assert checkpoints_of(folder) == [2, 4, 5], "the last one because it stopped"
    assert (folder / "hf" / "model.safetensors").is_file()
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_a_stopped_run_stays_stopped_when_it_is_started_again(stopped, start, capsys):
    folder, summary = stopped
    before = (folder / "metrics.jsonl").read_bytes()
    for callbacks in ([after_five_steps()], []):
        _, again = start("whole", *callbacks)
        assert (again["steps"], again["num_tokens"]) == (5, summary["num_tokens"])
        assert "stopped after step 5 of 6, as a callback asked" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_early_stopping_keeps_its_count_when_a_run_is_resumed(interrupted):
    """If the count began anew at the checkpoint after step 2, the run would last longer."""
    assert [len(metrics_of(folder)) for folder in interrupted] == [5, 5]


def test_a_custom_optimizer_resumes_bit_by_bit(interrupted):
    whole, killed = interrupted
    assert without_clocks(whole) == without_clocks(killed)
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in interrupted]
    assert weights[0] == weights[1]
    assert "learning_rate" not in metrics_of(whole)[0]
    norms = [row["grad_norm"] for row in metrics_of(whole)]
    assert norms[0] != norms[1] > 0, "the run learns, so a failed resume would show"


def test_a_run_does_not_resume_with_another_optimizer(interrupted, make):
    args = arguments(output_dir=interrupted[0], max_steps=6, save_steps=2)
    with pytest.raises(UserError, match="saved by another model or optimizer"):
        make(args).train()


# ---- train(), again ----


@pytest.fixture(scope="module")
def finished(recorded, again):
    """(a trainer of the finished run, what it returns when it trains twice, the metrics before that)."""
    before, trainer = without_clocks(recorded.folder), again()
    return trainer, [trainer.train(), trainer.train()], before


def test_training_a_finished_run_again_returns_its_summary(finished, recorded):
    _, summaries, before = finished
    for summary in summaries:
        same = ("before", "after", "steps", "num_tokens", "seconds")
        assert [summary[name] for name in same] == [recorded.summary[name] for name in same]
    assert without_clocks(recorded.folder) == before


def test_the_model_of_a_finished_run_can_be_saved(finished, recorded, tmp_path):
    finished[0].save_model(tmp_path / "model")
    saved, exported = (place / "model.safetensors" for place in (tmp_path / "model", recorded.folder / "hf"))
    assert saved.read_bytes() == exported.read_bytes()


# ---- the length of a run in epochs ----


@pytest.mark.parametrize(("rows", "epochs", "steps"), [(16, 1, 2), (16, 1.5, 3), (16, 0.1, 1), (25, 2.2, 7)])
def test_epochs_become_steps_rounded_up(make, rows, epochs, steps):
    """25 prompts 2.2 times are 55, and a step takes 8."""
    data = [{"prompt": f"{i}: say a"} for i in range(rows)]
    changes = {"num_train_epochs": epochs, "max_steps": -1}  # as TRL has it
    args = make(arguments(**changes), train_dataset=data).args
    assert (args.max_steps, args.num_train_epochs) == (steps, None)


def test_the_settings_file_of_a_run_by_epochs_repeats_it(tiny_settings, tmp_path):
    """40 rows, 8 a step: 0.4 epochs are 2 steps, and config.yaml has that number."""
    changes = {
        "num_train_epochs": 0.4,
        "output_dir": str(tmp_path / "run"),
        "mesh": "data=1",
        "eval_prompts": 0,
    }
    settings = {name: value for name, value in tiny_settings.items() if name != "max_steps"} | changes
    trainer = GRPOTrainer(settings["model"], args=GRPOConfig(**settings, lr_scheduler_type="constant"))
    components, files = trainer.components, [tmp_path / name / "config.yaml" for name in ("run", "other")]
    with open_run(components.config, components.policy, components.stages[0].scorer.fingerprint):
        pass
    assert main(["train", str(files[0]), "--output_dir", str(tmp_path / "other")]) == 0
    assert [row["step"] for row in metrics_of(tmp_path / "other")] == [1, 2]
    settings, repeated = (yaml.safe_load(file.read_text()) for file in files)
    assert settings | {"output_dir": str(tmp_path / "other")} == repeated


# ---- what scripts do around train() ----


def test_what_scripts_call_around_train_works_as_in_trl(recorded, capsys):
    """resume_from_checkpoint, evaluate, state.log_history, add_callback, save_model(output_dir)."""
    trainer, folder = recorded.trainer, recorded.folder
    assert trainer.evaluate()["eval_length"] > 0
    assert recorded.before.keys() == trainer.evaluate().keys()
    others = trainer.evaluate([{"prompt": "1: say a", "letter": "a"}] * 3, metric_key_prefix="other")
    assert (others["other_prompts"], others.keys()) == (3, {f"other{n[4:]}" for n in recorded.before})
    capsys.readouterr()
    trainer.save_model(folder)
    assert capsys.readouterr().out == f"model: {folder / 'hf'}\n"
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / file).read_bytes() == (folder / "hf" / file).read_bytes(), (
            "loadable from output_dir itself"
        )
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in (folder, newest):
        assert trainer.train(resume_from_checkpoint=str(path))["steps"] == 4
    with pytest.raises(
        UserError, match=r"resume_from_checkpoint = False: .* give another one to start a new run"
    ):
        trainer.train(resume_from_checkpoint=False)
    with pytest.raises(UserError, match=r"resume_from_checkpoint = 'a/checkpoint-5': .* leave it out"):
        trainer.train(resume_from_checkpoint="a/checkpoint-5")


def test_the_log_history_has_each_step_and_each_evaluation(recorded):
    """As in TRL: entries of their own, with the step and the passes over the data."""
    history = recorded.history
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4]
    evaluations = [line for line in history if "eval_reward" in line]
    assert [line["step"] for line in evaluations][-1] == 4, "after the last step, too"
    assert all(line["epoch"] == line["step"] * 8 / 16 for line in history)


def test_the_result_of_train_is_the_summary_and_transformers_output(recorded):
    history, found = recorded.history, recorded.summary
    losses = [line["loss"] for line in history if "loss" in line]
    assert (found.global_step, found.training_loss) == (4, pytest.approx(sum(losses) / 4))
    assert found.metrics["train_loss"] == found.training_loss
    assert found.metrics["train_runtime"] == found["seconds"]


def test_metrics_and_state_are_written_where_transformers_writes_them(recorded, capsys):
    trainer, folder = recorded.trainer, recorded.folder
    trainer.log_metrics("train", {"train_loss": 0.5})
    assert "train metrics" in (said := capsys.readouterr().out)
    assert "train_loss = 0.5" in said
    trainer.save_metrics("train", {"train_loss": 0.5})
    trainer.save_metrics("eval", {"eval_reward": 1.0})
    assert json.loads((folder / "train_results.json").read_text()) == {"train_loss": 0.5}
    both = {"train_loss": 0.5, "eval_reward": 1.0}
    assert json.loads((folder / "all_results.json").read_text()) == both
    trainer.save_state()
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4


def test_the_model_and_the_process_are_where_scripts_look_for_them(recorded, tmp_path, capsys):
    trainer = recorded.trainer
    trainer.model.save_pretrained(tmp_path / "out")
    saved = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert saved == (recorded.folder / "hf" / "model.safetensors").read_bytes()
    assert (trainer.accelerator.process_index, trainer.accelerator.num_processes) == (0, 1)
    assert trainer.accelerator.is_main_process
    assert trainer.is_world_process_zero()
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.print("here")
    assert capsys.readouterr().out == "here\n"
    assert trainer.processing_class.decode(trainer.processing_class("abc")["input_ids"]) == "abc"


def test_the_model_of_a_run_in_a_bucket_stays_where_it_is():
    """Nothing is linked there, and nothing fails."""
    place_model("gs://bucket/run")


def test_a_callback_can_be_removed_by_itself_or_by_its_class(again):
    trainer, first, second = again(), Recorder(), Recorder()
    for callback in (first, second):
        trainer.add_callback(callback)
    trainer.remove_callback(Recorder)
    assert trainer.callback_handler.callbacks.callbacks == [second]
    trainer.remove_callback(second)
    with pytest.raises(UserError, match="is not among the callbacks"):
        trainer.remove_callback(second)


@pytest.mark.parametrize(
    "name", ["compute_loss", "_generate_and_score_completions", "log", "create_optimizer"]
)
def test_a_subclass_with_a_method_that_is_never_called_is_refused(name):
    with pytest.raises(UserError, match=f"Mine.{name}: never called here; "):
        type("Mine", (GRPOTrainer,), {name: lambda self: None})


def test_a_script_without_rewards_or_without_data_is_refused(tiny_model):
    from grpo_jax import GRPOConfig as ScriptConfig

    with pytest.raises(UserError, match="reward_funcs: none given"):
        GRPOTrainer(tiny_model, args=ScriptConfig(dataset="tiny_math"))
    with pytest.raises(UserError, match="train_dataset: none given"):
        GRPOTrainer(tiny_model, "countdown")


def test_a_reward_is_given_the_step_on_held_out_prompts_too(recorded):
    before, after = (recorded.summary[when] for when in ("before", "after"))
    assert (before["reward"] // 100, after["reward"] // 100) == (0, 4), "and fewer than 100 vowels"
    assert (before["seen"], after["seen"]) == (0.0, 4.0)
    assert not [name for name in after if name.endswith("errors")]
