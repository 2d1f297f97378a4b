"""A run that commit 4696efd began, before files and names moved, is resumed by today's code.

The archive holds what that commit left: a tiny model, eight rows, and the run's folder after two of four steps. The
two lines of metrics that the same commit wrote when it resumed are beside it.
"""

import json
import pathlib
import tarfile

import pytest

from grpo_jax.cli import main

ARCHIVE = pathlib.Path(__file__).with_name("run_of_4696efd.tar.gz")
SETTINGS = {
    "model": "model",
    "dataset": "rows.jsonl",
    "rewards": "tiny_rewards.py:vowels",
    "output_dir": "run",
    "max_steps": 4,
    "save_steps": 2,
    "prompts_per_step": 2,
    "num_generations": 4,
    "max_prompt_length": 16,
    "max_completion_length": 8,
    "eval_prompts": 0,
    "eval_steps": 0,
    "learning_rate": 1e-3,
    "beta": 0.1,
    "log_completions_steps": 0,
    "mesh": "data=1,fsdp=1,tensor=1",
}
FIGURES = ("reward", "loss", "kl", "grad_norm", "num_tokens", "learning_rate")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_an_earlier_commit_resumes_to_the_same_figures(tmp_path, monkeypatch, options, capfd):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *options(SETTINGS)]) == 0
    expected, found = lines(tmp_path / "expected.jsonl"), lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for old, new in zip(expected, found[2:], strict=True):
        assert new.keys() >= {name for name in old if not name.startswith("compilations/")}
        for name in FIGURES:  # other processors round differently
            assert new[name] == pytest.approx(old[name], rel=1e-3, abs=1e-5), name
