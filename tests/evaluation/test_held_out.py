"""Evaluation during training: named sets, settings of its own, and the files it writes."""

import json
import pathlib

import pyarrow.parquet as pq
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.config import load_settings
from grpo_jax.errors import UserError
from grpo_jax.setup.sampling import eval_sampling_params

pytestmark = pytest.mark.usefixtures("shared_programs")

ROWS = [{"prompt": f"{i}: say a", "letter": "aeiou"[i % 5]} for i in range(16)]


def says_a(completions, letter, **columns):
    return [float("a" in text) for text in completions]


def short(completions, limit, **columns):
    return [float(len(text) < most) for text, most in zip(completions, limit)]


SETS = {
    "letters": ROWS[:5],
    "lengths": [{"prompt": f"be short {i}", "limit": 3 + i} for i in range(7)],
}


@pytest.fixture(scope="module")
def trainer(tiny_model, tmp_path_factory):
    """A run with two held-out sets, each with a reward of its own."""
    args = GRPOConfig(
        max_steps=2,
        prompts_per_step=8,
        num_generations=2,
        max_completion_length=8,
        max_prompt_length=32,
        mesh="data=1",
        eval_steps=1,
        eval_prompts=6,
        eval_samples=3,
        eval_temperature=0.7,
        eval_top_p=0.9,
        eval_max_completion_length=12,
        log_completions_steps=0,
        output_dir=str(tmp_path_factory.mktemp("held") / "run"),
    )
    mixed = {"letters": ROWS, "lengths": SETS["lengths"]}
    made = GRPOTrainer(tiny_model, [says_a, short], args, mixed, eval_dataset=SETS)
    made.train()
    return made


def folder_of(trainer):
    return pathlib.Path(trainer.args.output_dir)


def test_each_evaluation_set_has_figures_of_its_own(trainer):
    lines = [json.loads(line) for line in (folder_of(trainer) / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["eval/letters/prompts"] == 5
    assert lines[0]["eval/lengths/prompts"] == 6
    assert lines[0]["eval/prompts"] == 11
    for figure in ("success", "reward", "length", "clipped_ratio"):
        both = [lines[0][f"eval/{name}/{figure}"] for name in SETS]
        assert lines[0][f"eval/{figure}"] == pytest.approx((5 * both[0] + 6 * both[1]) / 11)
    assert "eval/letters/success" not in lines[1], "the last is evaluated after the training"


def test_an_evaluation_is_written_to_the_run_folder(trainer):
    kept = folder_of(trainer) / "evaluations"
    assert sorted(file.name for file in kept.iterdir()) == [
        f"step_0000{step}.{kind}" for step in (0, 1, 2) for kind in ("json", "parquet")
    ]
    table = pq.read_table(kept / "step_00001.parquet").to_pydict()
    figures = json.loads((kept / "step_00001.json").read_text())
    assert (figures["step"], figures["samples"]) == (1, 3)
    assert table["set"] == ["letters"] * 15 + ["lengths"] * 18
    assert table["sample"] == [0, 1, 2] * 11
    judged = table["says_a"][:15] + table["short"][15:]
    assert sum(value >= 1 for value in judged) / 33 == pytest.approx(figures["success"])
    assert table["short"][:15] == [None] * 15, "its rows have no limit"
    assert sum(table["length"]) / 33 == pytest.approx(figures["length"])


def test_evaluation_has_its_own_completion_length(trainer):
    lengths = pq.read_table(folder_of(trainer) / "evaluations" / "step_00000.parquet")["length"].to_pylist()
    assert 8 < max(lengths) <= 12
    sampling = eval_sampling_params(trainer.args, trainer.components.policy)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 0)


def test_the_summary_has_every_evaluation_set(trainer):
    summary = json.loads((folder_of(trainer) / "summary.json").read_text())
    assert summary["before"].keys() == summary["after"].keys()
    assert "lengths/success_stderr" in summary["before"]


def test_named_evaluation_sets_survive_the_settings_file(tmp_path):
    config = GRPOConfig(
        eval_dataset={"a": "countdown", "b": "arithmetic"}, eval_temperature=1.0, eval_top_k=5
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_settings(GRPOConfig, tmp_path / "config.yaml") == config
    typed = load_settings(GRPOConfig, None, {"eval_dataset": "{a: countdown, b: arithmetic}"})
    assert typed.eval_dataset == config.eval_dataset


def test_an_evaluation_set_without_rows_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"eval_dataset\['b'\]: no rows"):
        GRPOTrainer(tiny_model, says_a, GRPOConfig(), ROWS, eval_dataset={"a": ROWS, "b": []})
