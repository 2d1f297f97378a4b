"""The trainer from Python and from the command line: what a run leaves behind, and that its numbers are right."""

import json
import math
import sys

import cloudpickle
import numpy as np
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.cli import main
from grpo_jax.errors import UserError
from grpo_jax.models import hf
from grpo_jax.models.safetensors_io import open_folder

pytestmark = pytest.mark.usefixtures("shared_programs")

# Reward workers get functions of this file themselves, and need not import it, with all that it imports.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SAME_AS_IN_TRL = {
    "clip_ratio/high_mean",
    "clip_ratio/low_mean",
    "clip_ratio/region_mean",
    "completions/clipped_ratio",
    "completions/max_length",
    "completions/max_terminated_length",
    "completions/mean_length",
    "completions/mean_terminated_length",
    "completions/min_length",
    "completions/min_terminated_length",
    "entropy",
    "frac_reward_zero_std",
    "grad_norm",
    "kl",
    "learning_rate",
    "loss",
    "num_tokens",
    "reward",
    "reward_std",
    "rewards/counted/mean",
    "rewards/counted/std",
    "clip_ratio/high_max",
    "clip_ratio/low_min",
    "sampling/importance_sampling_ratio/max",
    "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/min",
    "sampling/sampling_logp_difference/max",
    "sampling/sampling_logp_difference/mean",
    "step",
    "step_time",
}
OURS = {
    "compilations/rows",
    "compilations/rollout",
    "compilations/score",
    "compilations/update",
    "peak_memory",
    "reward_group_std",
    "rollout_tokens_per_second",
    "time/reward",
    "time/rollout",
    "time/update",
    "tokens_per_second",
}
EVALUATION = {"clipped_ratio", "length", "prompts", "reward", "success", "success_stderr"}


@pytest.fixture(scope="module")
def run(tiny_settings, options, tmp_path_factory):
    """(the folder of a run with everything switched on, the calls of its reward)."""
    home = tmp_path_factory.mktemp("trainer")
    everything = {
        "output_dir": home / "run",
        "rewards": tiny_settings["rewards"].replace("vowels", "counted"),
        "beta": 0.05,
        "log_entropy": True,
        "eval_steps": 2,
        "log_completions_steps": 2,
        "max_steps": 4,
        "mesh": "data=1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_REWARDS_LOG", str(home / "calls"))
        assert main(["train", *options(tiny_settings | everything)]) == 0
    return home / "run", (home / "calls").read_text().splitlines()


@pytest.fixture(scope="module")
def rows(run):
    return [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]


# ---- what a run leaves behind ----


def test_a_runs_folder_holds_what_the_readme_says(run):
    inside = {path.name for path in run[0].iterdir() if not path.name.startswith(".")}
    assert inside == {
        "config.yaml",
        "run.json",
        "tokenizer",
        "metrics.jsonl",
        "completions",
        "checkpoints",
        "evaluations",
        "summary.json",
        "hf",
    }


def test_every_step_has_a_line_of_metrics_with_trls_names(rows):
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == SAME_AS_IN_TRL | OURS
    assert set(rows[1]) == set(rows[0]) | {f"eval/{name}" for name in EVALUATION}
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_sampler_and_the_learner_agree_on_log_probabilities(rows):
    """One forward pass for both: on float32 only rounding is left, in every step."""
    assert max(row["sampling/sampling_logp_difference/max"] for row in rows) < 1e-5


def test_one_update_a_rollout_is_on_policy(rows):
    """Its ratios are 1, so nothing is clipped; before the first update the policy is the reference."""
    assert {row["clip_ratio/region_mean"] for row in rows} == {0.0}
    assert abs(rows[0]["kl"]) < 1e-6 < rows[-1]["kl"]


def test_metrics_agree_with_one_another(rows):
    for row in rows:
        parts = row["time/rollout"] + row["time/reward"] + row["time/update"]
        assert 0 < parts <= row["step_time"] < parts + 1
        assert row["tokens_per_second"] == pytest.approx(
            16 * row["completions/mean_length"] / row["step_time"]
        )
        assert row["reward"] == row["rewards/counted/mean"]
        assert row["peak_memory"] > 2**20
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    counted = np.diff([0, *(row["num_tokens"] for row in rows)])
    prompts = counted - [16 * row["completions/mean_length"] for row in rows]
    assert ((prompts >= 16 * 11) & (prompts <= 16 * 12)).all(), (
        "prompts of 11 and 12 tokens, once a completion"
    )


def test_a_program_is_compiled_once_for_each_shape(rows):
    assert {row["compilations/rollout"] for row in rows} == {3}  # a table; its first tokens; all others
    assert {row["compilations/update"] for row in rows} == {1}


def test_completions_are_saved_with_trls_columns(run, rows):
    import pyarrow.parquet as pq

    files = sorted(path.name for path in (run[0] / "completions").iterdir())
    assert files == ["completions_00001.parquet", "completions_00002.parquet", "completions_00004.parquet"]
    table = pq.read_table(run[0] / "completions" / files[1]).to_pydict()
    assert list(table)[:5] == ["step", "prompt", "completion", "counted", "advantage"]
    assert set(table["step"]) == {2}
    assert len(table["prompt"]) == 16
    assert np.mean(table["counted"]) == rows[1]["reward"]
    by_prompt = np.reshape(table["advantage"], (8, 2))
    np.testing.assert_allclose(by_prompt.sum(1), 0, atol=1e-5)
    lengths = list(map(len, table["token_ids"]))
    assert table["length"] == lengths == list(map(len, table["logprobs"]))
    assert table["truncated"] == [ids[-1] != 2 for ids in table["token_ids"]], "<|im_end|> has number 2"
    assert table["prompt"][0].startswith("train "), "the text that the model saw"


def test_the_summary_reports_the_evaluations_before_and_after(run, rows):
    summary = json.loads((run[0] / "summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == EVALUATION
    assert summary["before"] != summary["after"]
    assert (summary["steps"], summary["num_tokens"]) == (4, rows[-1]["num_tokens"])
    assert summary["prompts_dropped"] == 0
    assert summary["peak_memory"] > 2**20
    assert summary["seconds"] > 0


def test_a_finished_run_accepts_its_own_config_yaml(run, options):
    """All steps are done, so the reward is not called again."""
    before = (run[0] / "metrics.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_REWARDS_LOG", "/dev/null")
        assert main(["train", str(run[0] / "config.yaml")]) == 0
    assert (run[0] / "metrics.jsonl").read_bytes() == before


def test_each_completion_is_scored_once(run):
    """4 steps of 8 groups of 2; 8 held-out prompts before, between (once) and after."""
    sizes = [int(call.split()[0]) for call in run[1]]
    assert sizes.count(2) == 4 * 8
    assert sizes.count(1) == 3 * 8


def test_the_export_opens_and_has_other_weights_than_the_start(run, tiny_model):
    assert hf.load_config(run[0] / "hf") == hf.load_config(tiny_model)
    assert len(hf.load_tokenizer(run[0] / "hf")) == len(hf.load_tokenizer(tiny_model))
    old, new = (
        open_folder(folder)["model.embed_tokens.weight"].open() for folder in (tiny_model, run[0] / "hf")
    )
    assert np.abs(new - old).max() > 1e-3


# ---- from Python ----

ROWS = [{"prompt": f"{i}: say a", "answer": "aeiou"[i % 5]} for i in range(16)]


def arguments(**changes):
    small = {"max_steps": 2, "prompts_per_step": 8, "num_generations": 2, "max_completion_length": 8}
    return GRPOConfig(**small | {"max_prompt_length": 32, "mesh": "data=1", "learning_rate": 1e-2} | changes)


def exact(prompts, completions, answer, **columns):
    return [float(a in c) for a, c in zip(answer, completions)]


def test_the_example_of_the_readme_trains_and_saves(tiny_model, tmp_path):
    shift = 0.25

    def exact(prompts, completions, answer, **columns):
        return [shift + float(a in c) for a, c in zip(answer, completions)]

    trainer = GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=exact,
        args=arguments(beta=0.001, output_dir=str(tmp_path / "run")),
        train_dataset=ROWS,
    )
    summary = trainer.train()
    trainer.save_model(tmp_path / "out")
    assert summary["steps"] == 2
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["rewards/exact/mean"] >= shift for row in rows), "the reward function keeps its closure"
    saved, exported = (tmp_path / "out", tmp_path / "run/hf")
    assert (saved / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert hf.load_config(saved) == hf.load_config(tiny_model)


def test_a_run_from_python_records_its_model_and_data(tiny_model, tmp_path):
    """Otherwise it could be resumed with other data, and `export` would not find its model."""
    make = lambda rows: GRPOTrainer(
        tiny_model, exact, arguments(output_dir=str(tmp_path / "run")), train_dataset=rows
    )
    make(ROWS).train()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    exported, ours = (tmp_path / name / "model.safetensors" for name in ("out", "run/hf"))
    assert exported.read_bytes() == ours.read_bytes()
    make(ROWS).train()
    with pytest.raises(UserError, match=r"dataset is '16 rows given from Python .*' there and '15 rows"):
        make(ROWS[:-1]).train()


def test_conversations_reach_the_reward_as_conversations(tiny_model):
    seen = []

    def look(prompts, completions, completion_ids, **columns):
        seen.extend(zip(prompts, completions, completion_ids, columns["answer"]))
        return [0.0 for _ in completions]

    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    look = UnpicklableReward(look)
    GRPOTrainer(
        tiny_model, look, arguments(max_steps=1, output_dir=None, max_prompt_length=64), chats
    ).train()
    assert len(seen) == 16
    for prompt, completion, ids, answer in seen:
        assert prompt[0]["content"].endswith("say a")
        assert answer == "aeiou"[int(prompt[0]["content"].split(":")[0]) % 5]
        assert [message["role"] for message in completion] == ["assistant"]
        assert 1 <= len(ids) <= 8


class UnpicklableReward:
    """Stays in this process, so that the test sees its calls."""

    __name__ = "look"

    def __init__(self, function):
        self.function = function

    def __call__(self, *given, **named):
        return self.function(*given, **named)

    def __reduce__(self):
        raise TypeError("stays here")


def test_every_reward_is_reported_and_needs_a_weight(tiny_model, tmp_path):
    def short(prompts, completions, **columns):
        return [None if len(text) > 4 else 1.0 for text in completions]

    args = arguments(reward_weights=[1.0, 0.5], output_dir=str(tmp_path / "run"))
    GRPOTrainer(tiny_model, [exact, short], args, ROWS).train()
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"rewards/exact/mean", "rewards/short/mean"} <= row.keys()
    with pytest.raises(UserError, match="there are 1 reward functions; give one weight for each"):
        GRPOTrainer(tiny_model, exact, args, ROWS)


def test_held_out_rows_are_evaluated(tiny_model):
    args = arguments(output_dir=None, max_steps=1)
    summary = GRPOTrainer(tiny_model, exact, args, ROWS, eval_dataset=ROWS[:3]).train()
    assert summary["before"]["prompts"] == summary["after"]["prompts"] == 3


def test_without_an_output_folder_nothing_is_written(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = GRPOTrainer(tiny_model, exact, arguments(output_dir=None, max_steps=1), ROWS)
    with pytest.raises(UserError, match="nothing is trained yet"):
        trainer.save_model("out")
    trainer.train()
    assert list(tmp_path.iterdir()) == []
    assert "model: " not in capsys.readouterr().out
    trainer.save_model("out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_single_training_file_is_not_evaluated_on(tiny_settings, options, tmp_path, capsys):
    """A single file has no split to hold out: it is better not to evaluate than to evaluate on training rows."""
    file = f"{tiny_settings['dataset']}/train.jsonl"
    changes = {"dataset": file, "output_dir": tmp_path / "run", "max_steps": 1, "mesh": "data=1"}
    assert main(["train", *options(tiny_settings | changes)]) == 0
    assert "is a single file without a held-out split. Set eval_dataset" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["before"] is None
    assert summary["after"] is None
