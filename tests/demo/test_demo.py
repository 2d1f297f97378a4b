"""The demo, made very small: it must run from nothing to the end. That it learns is measured by
benchmarks/demo.py, which takes minutes."""

import contextlib
import hashlib
import io
import json
import re
import shutil

import pytest

from grpo_jax.cli import main
from grpo_jax.data.tasks import tiny_countdown
from grpo_jax.demo import cold_start
from grpo_jax.models.config import SHAPE

pytestmark = pytest.mark.usefixtures("shared_programs")

STEPS = dict(cold_start.STEPS)
ONE = "data=1,fsdp=1,tensor=1"  # as users run it
SMALL = [
    f"--mesh={ONE}",
    "--max_steps=2",
    "--prompts_per_step=8",
    "--num_generations=2",
    "--micro_batch_size=0",
    "--max_completion_length=8",
    "--eval_prompts=8",
    "--log_completions_steps=1",
]


@pytest.fixture(scope="module", autouse=True)
def brief():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_start, "STEPS", dict.fromkeys(cold_start.STEPS, (2, 2)))
        patch.setattr(cold_start, "EXAMPLES", 100)
        brief = cold_start.COLD_START.model_copy(update={"rows_per_step": 16})
        patch.setattr(cold_start, "COLD_START", brief)
        yield


def run(folder, *words):
    return main(["train", "demo", "--output_dir", str(folder), *SMALL, *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what was printed) of a whole demo."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(folder) == 0
    return folder, out.getvalue()


def test_the_demo_runs_to_its_end(finished):
    folder, said = finished
    names = {path.name for path in folder.iterdir()}
    files = {"config.yaml", "metrics.jsonl", "summary.json"}
    assert names >= files | {"start", "completions", "checkpoints", "hf"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["prompts"] == summary["after"]["prompts"] == 8
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    for words in ("random parameters", "Cold start: 4 steps", "success", "Held-out samples after", "model: "):
        assert words in said


def test_the_demos_worked_examples_stay_the_same_to_the_bit():
    """With the symbols (tests/demo/test_tiny_model.py) and the settings they determine the starting model."""
    rows = [
        tiny_countdown.worked_examples("", seed, 500, patience, cold_start.CARE)
        for seed in (0, 1)
        for patience in (1.0, 0.15)
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "7d330a81961e68ae0aa4ecbdc48fe5f2493b65c8b29ea512930fe14a47704de0"
    assert STEPS["tiny_countdown"] == (1400, 200)


def test_a_finished_demo_does_not_begin_again(finished, capsys):
    assert run(finished[0]) == 0
    said = capsys.readouterr().out
    assert "made before" in said
    assert "Cold start" not in said


def test_transformers_reads_the_demos_model_and_tokenizer_alike(finished):
    """transformers opens every Qwen2 model with Qwen's own kind of tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished[0] / "hf")
    tokenizer = AutoTokenizer.from_pretrained(finished[0] / "hf")
    text = "4 9 12=7:<think>4+9=13-12=1 vs 7 no\n4+12=16-9=7 vs 7 yes</think><answer>4+12-9</answer>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(ids)[-3:] == ["-", "9", "</answer>"]
    assert len(ids) == 42
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        assert model(torch.tensor([ids])).logits.shape == (1, 42, SHAPE.vocab_size)


def test_another_mixture_of_tasks_gets_a_starting_model_of_its_own(tmp_path):
    tasks = {"knights": "tiny_knights:people=2", "sums": "tiny_math:levels=1"}
    words = ["--max_steps=1", "--max_prompt_length=32", "--eval_prompts=0", "--rewards=think_format_reward"]
    assert run(tmp_path / "run", "--dataset", json.dumps(tasks), *words) == 0
    made_of = _made_of(tmp_path / "run" / "start")
    assert made_of == {"seed": 0, "tasks": list(tasks.values()), "steps": [2 * 2, 2 * 2]}


def _made_of(start):
    return json.loads((start / "config.json").read_text())["grpo_jax_demo"]


def test_every_part_of_a_mixture_is_taught():
    tasks = cold_start.tasks_for(["tiny_math", "tiny_knights:people=2", "tiny_math", "tiny_math:levels=6"])
    rows = cold_start._rows(tasks, seed=0)
    assert len(rows) == (2 + 2) * 2 * cold_start.COLD_START.rows_per_step
    for begins, every in ((r"\d[+-]\d", 3), ("Who is who", 3), (r"(\d[+-]){6}", 3)):
        assert sum(bool(re.match(begins, row["prompt"])) for row in rows[:30]) * every >= 30
    assert cold_start._steps_for(tasks) == [4, 4]


def test_a_starting_model_is_reused_only_for_the_same_seed(finished, tmp_path, capsys):
    """A run that was killed leaves `start`; the same command keeps it, another seed makes another one."""
    shutil.copytree(finished[0] / "start", tmp_path / "start")
    made = {}
    for seed in (0, 1):
        with cold_start.starting_model(_config(tmp_path, seed)) as start:
            made[seed] = (start / "model.safetensors").read_bytes()
            assert _made_of(start) == {"seed": seed, "tasks": ["tiny_countdown"], "steps": [2, 2]}
        assert ("made before" in capsys.readouterr().out) == (seed == 0)
    assert made[0] != made[1]


def test_a_run_without_a_folder_leaves_none_and_starts_from_the_same_model(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cold_start.starting_model(_config("none", 0)) as start:
        made = (start / "model.safetensors").read_bytes()
    assert made == (finished[0] / "start" / "model.safetensors").read_bytes()
    assert not start.exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(tmp_path) == 2
    assert "output folder in use" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_foreign_folder_named_start_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "thesis.tex").write_text("years of work")
    assert run(tmp_path) == 2
    assert "is there and not the demo's model" in capsys.readouterr().err
    assert (tmp_path / "start" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--dataset", "gsm8k"],
            "dataset = gsm8k: the model 'demo' reads tiny_countdown, tiny_knights, tiny_math only",
        ),
        (["--dataset", "tiny_countdown:max=50"], "use max=33 or less"),
        (["--dataset", "{a: tiny_math, b: gsm8k}"], "dataset = gsm8k: the model 'demo' reads"),
        (["--eval_dataset", "tiny_math"], "knows the symbols of tiny_countdown only"),
        (["--output_dir", "gs://bucket/run"], "give a local folder"),
        (["--rewards", "countdwn"], "nothing is called 'countdwn' (did you mean 'countdown'?)"),
        (["--rewards", "model:nowhere"], "rewards: model 'nowhere': no such folder"),
    ],
)
def test_what_the_demo_cannot_do_is_refused_before_it_starts(tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", *SMALL, *words]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _config(folder, seed):
    from grpo_jax.config import GRPOConfig, load_settings

    return load_settings(GRPOConfig, "demo", {"output_dir": str(folder), "seed": str(seed), "mesh": ONE})
