"""`eval`, `generate` and `export`, each as a person types it."""

import contextlib
import io
import json
import re

import numpy as np
import optax
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.cli import main
from grpo_jax.models.safetensors_io import open_folder


@pytest.fixture
def verb(tiny_model, options, capsys, shared_programs):
    """`verb(name, **settings)`: what a verb prints for `tiny_model`; it must succeed."""
    usual = {"model": tiny_model, "max_completion_length": 8, "mesh": "data=1"}

    def run(name, **settings):
        assert main([name, *options(usual | settings)]) == 0
        return capsys.readouterr().out

    return run


# ---- generate ----


@pytest.fixture(scope="module")
def greedy(tiny_model, options, shared_programs):
    """The greedy answer of `generate` to "say a", on one device."""
    usual = {"model": tiny_model, "max_completion_length": 8, "mesh": "data=1", "temperature": 0}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["generate", *options(usual | {"prompt": "say a"})]) == 0
    return said.getvalue()


def test_generate_prints_completions_that_are_a_function_of_the_seed(verb):
    first, again, other = (verb("generate", prompt="say a", samples=3, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    texts = first.removesuffix("\n").split("\n---\n")
    assert len(texts) == len(set(texts)) == 3
    assert all(0 < len(text) <= 8 for text in texts)
    assert "<|im_" not in first, "special tokens are not text"


def test_greedy_text_does_not_depend_on_the_mesh(verb, greedy):
    """Prompts are repeated to fill the mesh; its shape must not change the text."""
    assert verb("generate", prompt="say a", temperature=0, mesh="data=2,tensor=2") == greedy


def test_the_chat_template_is_used_unless_told_otherwise(verb, greedy):
    answers = {
        greedy,
        verb("generate", prompt="say a", temperature=0, chat="false"),
        verb("generate", prompt="say a", temperature=0, system_prompt="You count."),
    }
    assert len(answers) == 3


def test_a_row_with_a_seed_does_not_depend_on_the_rows_beside_it(verb, tmp_path):
    """A row with a seed has the text that it has alone, at any place, beside any others; and the file's order."""
    rows = [
        {"prompt": "say a"},
        {"prompt": "say more", "seed": 7},
        {"prompt": "say a"},
        {"prompt": "b", "seed": 1},
    ]

    def texts(rows, **settings):
        file = tmp_path / "ask.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return verb("generate", prompts=file, **settings).removesuffix("\n").split("\n---\n")

    seeded = [row for row in rows if "seed" in row]
    alone = [verb("generate", **row).removesuffix("\n") for row in seeded]
    there = texts(rows)
    assert there[1::2] == alone
    assert there[0] != there[2], "the same prompt twice is two samples"
    assert texts(rows[::-1], seed=3)[::2] == alone[::-1]


def test_generate_continues_the_prefill(verb, greedy):
    opened = verb("generate", prompt="say a", temperature=0, prefill="ab")
    text = "<|im_start|>user\nsay a<|im_end|>\n<|im_start|>assistant\nab"
    assert greedy != opened == verb("generate", prompt=text, temperature=0, chat="false")


def test_generate_ends_at_a_stop_string(verb):
    """A single sample is printed token by token, three are printed whole; both end there."""
    long = {"prompt": "say a", "max_completion_length": 24, "banned_tokens": "<|im_end|>"}
    whole = verb("generate", **long).removesuffix("\n")
    assert len(whole) == 24
    stop = whole[16:18]
    ended = whole[: whole.index(stop) + 2]
    assert verb("generate", **long, stop_strings=json.dumps([stop])) == ended + "\n"
    assert verb("generate", **long, stop_strings=json.dumps([stop]), samples=3).startswith(ended + "\n---\n")


def test_generate_samples_at_least_min_tokens(verb):
    silent = "[0, 1, 101]"  # special tokens, which have no text
    texts = verb("generate", prompt="say a", samples=16, min_tokens=8, banned_tokens=silent)
    assert [len(text) for text in texts.removesuffix("\n").split("\n---\n")] == [8] * 16


# ---- eval ----


@pytest.fixture(scope="module")
def evaluated(tiny_model, tiny_settings, options, tmp_path_factory, shared_programs):
    """(what `eval` prints, what it writes) for four samples and a greedy answer to each of eight prompts."""
    settings = {
        "model": tiny_model,
        "task": tiny_settings["dataset"],
        "rewards": tiny_settings["rewards"],
        "reward_workers": 1,
        "max_prompt_length": 32,
        "max_completion_length": 8,
        "samples": 4,
        "mesh": "data=1",
        "output": tmp_path_factory.mktemp("evaluated") / "results" / "eval.json",
    }
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["eval", *options(settings)]) == 0
    return said.getvalue(), json.loads(settings["output"].read_text())


def test_eval_measures_greedy_and_sampled(evaluated):
    table, results = evaluated
    sampled = results["sampled"]
    assert {"avg@4", "pass@1", "pass@2", "pass@4", "avg@4_stderr", "pass@4_stderr"} <= sampled.keys()
    assert sampled["prompts"] == results["greedy"]["prompts"] == 8
    assert 0 < sampled["success"] < 1
    assert [sampled["avg@4"], sampled["pass@1"]] == pytest.approx([sampled["success"]] * 2)
    assert sampled["pass@1"] < sampled["pass@2"] < sampled["pass@4"]
    assert re.search(r"pass@4 .* 0\.\d+ ± 0\.\d+", table)


def test_training_evaluates_as_eval_does(evaluated, run):
    """The numbers before training in `summary.json` are those of `eval` on the same model; the meshes differ."""
    assert json.loads((run / "summary.json").read_text())["before"] == evaluated[1]["greedy"]


# ---- export ----


@pytest.fixture(scope="module")
def run(tiny_settings, tmp_path_factory):
    """A run with checkpoints after the steps 1, 2 and 3, on four devices. `export` need not know its optimizer,
    which is the caller's own, nor the state of an adaptive entropy bonus."""
    small = {"max_steps": 3, "save_steps": 1, "mesh": "fsdp=2,tensor=2", "use_adaptive_entropy": True}
    folder = tmp_path_factory.mktemp("export") / "run"
    config = GRPOConfig(**tiny_settings | small | {"output_dir": str(folder)})
    GRPOTrainer(config.model, args=config, optimizers=optax.sgd(0.1, momentum=0.9)).train()
    return folder


def tensors(folder):
    return {name: np.array(tensor.open()) for name, tensor in open_folder(folder).items()}


def test_export_writes_the_newest_checkpoint(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert f"step 3 of {run}" in capsys.readouterr().out
    names = {file.name for file in (run / "hf").iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (run / "hf" / name).read_bytes()


def test_export_takes_any_step(run, tmp_path):
    for step in (1, 2):
        assert main(["export", str(run), str(tmp_path / str(step)), "--step", str(step)]) == 0
    up = "model.layers.0.mlp.up_proj.weight"
    first, second, last = (tensors(folder)[up] for folder in (tmp_path / "1", tmp_path / "2", run / "hf"))
    far = lambda a, b: np.abs(a - b).max()
    assert 0 < far(second, last) < far(first, last), "each step moves on"
    assert far(first, second) > 0


def test_export_works_with_fewer_devices_than_the_run_had(run, tmp_path, monkeypatch):
    """The run had four devices; the machine that exports has what it has."""
    import jax

    monkeypatch.setattr(jax, "devices", lambda *_, real=jax.devices: real()[:1])
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (run / "hf/model.safetensors").read_bytes()


def test_generate_takes_an_exported_folder(run, verb, greedy):
    assert verb("generate", model=run / "hf", prompt="say a", temperature=0) != greedy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "OUT", "--step", "7"], r"step: 7 is not in .*; it has \[1, 2, 3\]"),
        (["RUN", "RUN"], r"exists and is not an empty folder; remove it or choose another"),
        (["RUN/hf", "OUT"], r"hf: no run here \(no config.yaml\)"),
    ],
)
def test_export_refuses_bad_arguments_and_writes_nothing(run, words, said, tmp_path, capsys):
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(["export", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_export_refuses_a_run_without_a_checkpoint(run, tmp_path, capsys):
    import shutil

    young = shutil.copytree(run, tmp_path / "young", ignore=shutil.ignore_patterns("checkpoints", "hf"))
    assert main(["export", str(young), str(tmp_path / "out")]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (young / "checkpoints").exists(), "export must not write into the run"
