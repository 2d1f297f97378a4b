"""The command line: bad input is one line and exit code 2, help imports nothing heavy, verbs get the typed settings."""

import os
import subprocess
import sys
import types

import pytest

from grpo_jax import cli
from grpo_jax.commands.starting import starting
from grpo_jax.config import EvalConfig, GenerateConfig, GRPOConfig, SFTConfig
from grpo_jax.config.reject import RejectConfig
from grpo_jax.errors import UserError
from grpo_jax.runs import status

BAD = [
    # arguments                                  what stderr must say
    ("trian", "trian: no such verb (did you mean 'train'?)"),
    ("nonsense --seed 3", "nonsense: no such verb; verbs are train, sft, eval"),
    ("--seed 3", "--seed: no such verb; verbs are train"),
    ("train --lerning_rate 1e-6", "--lerning_rate: no such setting (did you mean 'learning_rate'?)"),
    ("train --lerning_rate=1e-6", "--lerning_rate: no such setting (did you mean 'learning_rate'?)"),
    ("train --learning-rate 1", "did you mean 'learning_rate'?"),
    ("train --max_st 3", "--max_st: no such setting (did you mean 'max_steps'?)"),
    ("train --sourc x", "--sourc: no such setting"),
    ("train --per_device_train_batch_size 4", "write prompts_per_step and num_generations"),
    ("train --use_vllm true", "--use_vllm: not a setting here"),
    ("train --lr 1", "--lr: not a setting here; write learning_rate"),
    ("train demo again", "again: not understood by train"),
    ("train dmo", "dmo: no such recipe (did you mean 'demo'?)"),
    ("train missing.yaml", "missing.yaml: not found"),
    ("train --max_steps", "--max_steps: expected one argument"),
    ("train --max_steps many", "max_steps = 'many': must be a whole number"),
    ("train --max_steps -1", "max_steps = '-1': must be at least 1"),
    ("train --shuffle_dataset maybe", "shuffle_dataset = 'maybe': must be true or false"),
    ("train gsm8k --num_minibatches 3", "num_minibatches = 3: 512 rows"),
    ("train --mesh a=1", "mesh = 'a=1': no axis 'a'"),
    ("train --loss_type ppo", "loss_type = 'ppo': must be 'grpo', 'dapo'"),
    ("train --num_processes two", "--num_processes: invalid int value: 'two'"),
    ("train --coordinator localhost:1", "--coordinator, --num_processes and --process_id go together"),
    ("sft --model m", "dataset: must be given"),
    ("sft --dataset x --num_generations 8", "--num_generations: not a setting here"),
    ("eval --model m --samples -3", "samples = '-3': must be at least 0"),
    ("eval --model m --dataset x", "--dataset: not a setting here; write task"),
    ("generate --model m", "prompt: must be given"),
    ("export run", "required: OUT"),
    ("export run out --step last", "--step: invalid int value: 'last'"),
    ("doctor --fast", "--fast: no such setting"),
    ("doctor demo", "demo: not understood by doctor"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(line, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing may be written for a command that is refused"


@pytest.fixture
def calls(monkeypatch):
    """Every verb's body replaced by one that records what it was called with, in order."""
    seen: list[tuple] = []

    def record(name, code=0):
        return lambda *given: seen.append((name, *given)) or code

    bodies = {
        "train": "train",
        "sft": "sft",
        "evaluate": "evaluate_command",
        "generate": "generate_command",
        "export": "export_command",
        "doctor": "doctor",
    }
    for module, function in bodies.items():
        fake = types.SimpleNamespace(**{function: record(module)})
        monkeypatch.setitem(sys.modules, f"grpo_jax.commands.{module}", fake)
    hosts = types.SimpleNamespace(initialize=record("hosts"))
    monkeypatch.setitem(sys.modules, "grpo_jax.sharding.hosts", hosts)
    return seen


NO_HOSTS = ("hosts", None, None, None)


def test_train_without_arguments_is_the_demo(calls):
    assert cli.main(["train"]) == 0
    assert calls[0] == NO_HOSTS, "the hosts must meet before anything asks for devices"
    assert calls[1][0] == "train"
    assert calls[1][1].output_dir == "runs/demo"


def test_settings_of_the_demo_apply_to_the_demo_only(calls):
    cli.main(["train", "--model", "Qwen/Qwen2.5-0.5B"])
    assert calls[1][1] == GRPOConfig(model="Qwen/Qwen2.5-0.5B")


def test_the_command_line_overrides_the_recipe(calls):
    cli.main(["train", "gsm8k", "--learning_rate", "3e-6", "--log_entropy", "--eval_steps=5"])
    config = calls[1][1]
    assert (config.learning_rate, config.log_entropy, config.eval_steps) == (3e-6, True, 5)
    assert config.model == "Qwen/Qwen2.5-1.5B-Instruct"


def test_a_runs_own_settings_repeat_it(calls, tmp_path):
    config = GRPOConfig(seed=5, rewards=["countdown", "f.py:g"], mesh="fsdp=2")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    cli.main(["train", str(tmp_path / "config.yaml")])
    assert calls[1][1] == config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sft --model m --dataset rows.jsonl", ("sft", SFTConfig(model="m", dataset="rows.jsonl"))),
        (
            "eval --model m --task gsm8k --samples 4",
            ("evaluate", EvalConfig(model="m", task="gsm8k", samples=4)),
        ),
        (
            "generate --model m --prompt Hi --chat false",
            ("generate", GenerateConfig(model="m", prompt="Hi", chat=False)),
        ),
    ],
)
def test_other_verbs_get_their_settings(line, expected, calls):
    assert cli.main(line.split()) == 0
    assert calls == [NO_HOSTS, expected]


def test_hosts_get_their_addresses(calls):
    cli.main(["train", "--coordinator", "h:1", "--num_processes", "2", "--process_id", "1"])
    assert calls[0] == ("hosts", "h:1", 2, 1)


def test_export_and_doctor_get_their_arguments(calls):
    assert cli.main(["export", "runs/a", "out", "--step", "3"]) == 0
    assert cli.main(["export", "runs/a", "out", "--quiet"]) == 0
    assert cli.main(["doctor"]) == 0
    assert calls == [
        ("export", "runs/a", "out", 3, False, False),
        ("export", "runs/a", "out", None, False, True),
        ("doctor",),
    ]


def test_the_exit_code_is_that_of_the_verb(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpo_jax.commands.doctor", types.SimpleNamespace(doctor=lambda: 1))
    assert cli.main(["doctor"]) == 1


@pytest.mark.parametrize(("fault", "code"), [(UserError("model = x: no"), 2), (KeyboardInterrupt(), 130)])
def test_user_errors_and_interrupts_in_a_verb_have_their_exit_codes(fault, code, monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "doctor", ("", lambda args: (_ for _ in ()).throw(fault)))
    assert cli.main(["doctor"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_internal_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "doctor", ("", lambda args: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_the_table_of_recipes_names_all_and_fits_the_terminal(capsys, monkeypatch):
    from grpo_jax import recipes

    for columns in (60, 80, 132):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main(["recipes"]) == 0
        table = capsys.readouterr().out.split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in table[1:]] == recipes.names()
        assert all(len(line) <= columns for line in table)


def test_a_recipe_is_shown_in_full(capsys):
    assert cli.main(["recipes", "gsm8k"]) == 0
    out = capsys.readouterr().out
    for word in ("gsm8k:", "source", "time", "memory", "77.9 %, greedy, strict ####", "grpo-jax train gsm8k"):
        assert word in " ".join(out.split())


def test_an_unknown_recipe_is_refused_with_the_nearest_name(capsys):
    assert cli.main(["recipes", "gsm8"]) == 2
    assert "gsm8: no such recipe (did you mean 'gsm8k'?)" in capsys.readouterr().err


def test_no_arguments_print_the_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("verb", "cls"),
    [
        ("train", GRPOConfig),
        ("sft", SFTConfig),
        ("eval", EvalConfig),
        ("generate", GenerateConfig),
        ("reject", RejectConfig),
    ],
)
def test_help_shows_every_setting(verb, cls, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert [name for name in cls.model_fields if f"--{name} " not in out] == []


@pytest.mark.parametrize(
    "line",
    ["--help", "train --help", "train --lerning_rate 3", "recipes", "eval --samples x", "pipeline r1 --dry"],
)
def test_help_and_bad_input_load_nothing_heavy(line):
    program = f"""
import sys
from grpo_jax.cli import main
try:
    main({line.split()!r})
except SystemExit:
    pass
print([m for m in ("jax", "flax", "transformers", "datasets", "orbax", "torch", "numpy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_grpo_jax_runs_the_same_program():
    done = subprocess.run([sys.executable, "-m", "grpo_jax", "trian"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: trian: no such verb")


@pytest.fixture
def run_without_reader(tmp_path):
    """Runs the program with stdout a pipe that nobody reads; returns its exit code and its stderr."""

    def run_(*arguments, unbuffered=""):
        theirs, ours = os.pipe()
        os.close(theirs)
        with os.fdopen(ours, "w") as stdout:
            done = subprocess.run(
                [sys.executable, "-m", "grpo_jax", *arguments],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )
        return done.returncode, done.stderr

    return run_


@pytest.mark.parametrize(
    "line",
    ["--help", "train --help", "recipes", "recipes gsm8k", "eval --list", "plan --targets", "data --help"],
)
def test_a_closed_stdout_ends_any_verb_quietly(line, run_without_reader):
    assert run_without_reader(*line.split()) == (141, "")


def test_a_closed_stdout_ends_a_verb_quietly_without_buffering_too(run_without_reader):
    assert run_without_reader("recipes", "gsm8k", unbuffered="1") == (141, "")


def test_bad_input_keeps_its_exit_code_if_stdout_is_closed(run_without_reader):
    code, said = run_without_reader("trian")
    assert (code, said.count("\n")) == (2, 1)


def test_a_broken_pipe_other_than_stdout_keeps_its_traceback(monkeypatch, capfd):
    def verb(args):
        raise BrokenPipeError("a worker's")

    monkeypatch.setitem(cli.VERBS, "doctor", ("", verb))
    with pytest.raises(BrokenPipeError):
        cli.main(["doctor"])


@pytest.mark.parametrize(("given", "phases"), [([], ["starting"]), (["--quiet"], [])])
def test_a_terminal_says_that_a_command_is_starting(given, phases, monkeypatch):
    shown = []
    parsed = cli.make_parser().parse_args(["export", "runs/a", "out", *given])
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("grpo_jax.commands.starting.display_for", lambda stream: Shown(shown))
    with starting(parsed):
        shown += [phase.name for phase in status.current()._phases]
    assert shown == [*phases, *["closed"] * len(phases)]
    assert status.current().quiet


class Shown:
    """A display that only keeps that it was closed."""

    def __init__(self, calls):
        self.show, self.close = lambda *_: None, lambda: calls.append("closed")


def test_a_program_that_was_interrupted_ends_at_once(monkeypatch, capsys):
    ended = []
    monkeypatch.setitem(cli.VERBS, "doctor", ("", lambda args: (_ for _ in ()).throw(KeyboardInterrupt)))
    monkeypatch.setattr(sys, "argv", ["grpo-jax", "doctor"])
    monkeypatch.setattr(os, "_exit", ended.append)
    cli.main()
    assert ended == [130]
