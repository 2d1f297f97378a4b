"""A pipeline that was killed in several of its steps ends with the bits of one never killed; and R1's, made small."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import yaml

import grpo_jax.recipes
from grpo_jax.cli import main
from grpo_jax.models.config import SHAPE
from grpo_jax.models.hf_config import load_config
from grpo_jax.models.load import load_params
from grpo_jax.models.safetensors_io import open_folder

POINTS = (
    "while exporting",
    "before a step is noted",
    "after the rollout of step 3",
    "before the second piece",
    "never",
)


def steps(tiny_settings, home):
    """SFT, RL, rejection sampling and SFT from the base, of a few steps each."""
    reward = {name: tiny_settings[name] for name in ("dataset", "rewards", "reward_workers")}
    short = {"max_prompt_length": 32, "max_completion_length": 8}
    learn = {"rows_per_step": 2, "max_steps": 2, "save_steps": 1, "max_length": 48, "packing": True}
    learn["learning_rate"] = 1e-2
    rl = {
        "model": "${cold.model}",
        "prompts_per_step": 4,
        "num_generations": 2,
        "max_steps": 3,
        "save_steps": 1,
        "eval_prompts": 0,
        "learning_rate": 1e-2,
    }
    pick = {
        "model": "${rl.model}",
        "dataset_split": "test",
        "samples": 4,
        "prompts_per_step": 4,
        "stop_strings": ["a", "e", "i"],
        "max_completion_length": 16,
    }
    listed = [
        ("cold", "sft", learn | {"model": "${inputs.base}", "dataset": "${inputs.traces}"}),
        ("rl", "train", reward | short | rl),
        ("pick", "reject", reward | short | pick),
        ("again", "sft", learn | {"model": "${inputs.base}", "dataset": "${pick.rows}"}),
    ]
    return {
        "output_dir": "out",
        "inputs": {"base": tiny_settings["model"], "traces": str(home / "traces.jsonl")},
        "stages": [{"name": name, "verb": verb, "settings": given} for name, verb, given in listed],
    }


@pytest.fixture(scope="module")
def killed(command, tiny_settings, tmp_path_factory):
    """(an uninterrupted pipeline, one that was killed at every point in turn, that one's processes)."""
    homes = []
    start = lambda point, home: command(["pipeline", "mine.yaml"], point, cwd=home).wait()
    for name in ("whole", "killed"):
        home = tmp_path_factory.mktemp(name)
        traces = [{"prompt": f"say {i}", "completion": "aeiou"[i % 5] * 3} for i in range(12)]
        (home / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traces))
        homes.append(home)
    content = yaml.safe_dump(steps(tiny_settings, homes[0]), sort_keys=False)
    for home in homes:
        (home / "mine.yaml").write_text(content)
    whole = start("never", homes[0])
    assert whole.returncode == 0, whole.stderr
    return homes[0] / "out", homes[1] / "out", [start(point, homes[1]) for point in POINTS]


def files_of(folder):
    """What a step hands on, and what it was measured by."""
    names = ("*/hf/*", "*/rows.jsonl", "*/pieces/*", "*/samples/*")
    return {str(file.relative_to(folder)): file.read_bytes() for name in names for file in folder.glob(name)}


def test_the_process_is_killed_at_every_point(killed):
    codes = {point: start.returncode for point, start in zip(POINTS, killed[2])}
    assert codes == dict.fromkeys(POINTS, -signal.SIGKILL) | {"never": 0}, killed[2][-1].stderr


def test_a_killed_pipeline_ends_with_the_bits_of_one_never_killed(killed):
    whole, other, _ = killed
    found, wanted = files_of(other), files_of(whole)
    assert found.keys() == wanted.keys()
    assert {name.partition("/")[0] for name in found} == {"01-cold", "02-rl", "03-pick", "04-again"}
    assert [name for name in found if found[name] != wanted[name]] == []
    left = [path.name for path in other.rglob("*") if "tmp" in path.name or "partial" in path.name]
    assert left == []


def test_finished_steps_are_not_run_twice(killed):
    outs = [start.stdout for start in killed[2]]
    begun = [
        [line.split(": ")[1].split(" ")[0] for line in out.splitlines() if line.startswith("== ")]
        for out in outs
    ]
    assert begun == [["cold"], ["cold"], ["cold", "rl"], ["rl", "pick"], ["pick", "again"]]
    # The checkpoint of step 2 may have been under way; it waited for that of step 1.
    assert "step 1/3" not in killed[2][3].stderr
    assert "step 3/3" in killed[2][3].stderr
    assert "finished" in outs[-1]


def test_the_record_names_inputs_outputs_and_times(killed):
    there = json.loads((killed[1] / "pipeline.json").read_text())["stages"]
    assert list(there) == ["cold", "rl", "pick", "again"]
    again = there["again"]
    assert again["inputs"] == ["inputs.base", "pick.rows"]
    assert again["outputs"] == {"model": "hf"}
    assert again["settings"]["dataset"] == "${pick.rows}"
    assert again["seconds"] > 0
    assert len(again["settings_digest"]) == 64
    assert there["pick"]["result"].startswith("kept ")


@pytest.fixture
def finished(killed, tmp_path, monkeypatch):
    """A copy of the finished pipeline, in whose folder we are; `finished(step, **changes)` changes its file."""
    home = shutil.copytree(killed[0].parent, tmp_path / "home")
    monkeypatch.chdir(home)
    file = home / "mine.yaml"
    content = yaml.safe_load(file.read_text())

    def change(step, **changes):
        for one in content["stages"]:
            if one["name"] == step:
                one["settings"] |= changes
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return content, file

    return change


def test_a_finished_pipeline_started_again_changes_nothing(finished, capsys):
    before = files_of(pathlib.Path("out"))
    assert main(["pipeline", "mine.yaml"]) == 0
    assert "== step" not in (shown := capsys.readouterr().out)
    assert "kept" in shown
    assert files_of(pathlib.Path("out")) == before
    finished("rl", reward_workers=2)
    assert main(["pipeline", "mine.yaml"]) == 0, "what changes no result may change"


def test_changed_settings_of_a_finished_step_are_refused(finished, capsys):
    finished("rl", learning_rate=0.5)
    assert main(["pipeline", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "step rl: finished with other settings: learning_rate is 0.01 there and 0.5 here" in said


def test_a_file_without_a_finished_step_is_refused(finished, capsys):
    content, file = finished("rl")
    content["stages"][2:3] = []
    content["stages"][2]["settings"]["dataset"] = content["inputs"]["traces"]
    file.write_text(yaml.safe_dump(content))
    assert main(["pipeline", "mine.yaml"]) == 2
    assert "step pick is finished as number 3, and is not there in mine.yaml" in capsys.readouterr().err


def test_a_lost_output_of_a_finished_step_is_refused(finished, capsys):
    shutil.rmtree("out/02-rl/hf")
    assert main(["pipeline", "mine.yaml"]) == 2
    assert "step rl: finished, but out/02-rl/hf is gone" in capsys.readouterr().err


def test_an_unreadable_record_is_refused(finished, capsys):
    pathlib.Path("out/pipeline.json").write_text('{"stages": ')
    assert main(["pipeline", "mine.yaml"]) == 2
    assert "out/pipeline.json: not readable" in capsys.readouterr().err
    pathlib.Path("out/pipeline.json").write_text('{"stages": {"start": 5}}')
    assert main(["pipeline", "mine.yaml"]) == 2
    assert "out/pipeline.json: not readable (step start has no settings)" in capsys.readouterr().err


def test_a_step_that_fails_is_named(finished, capsys):
    content, file = finished("again")
    content["output_dir"], content["inputs"]["traces"] = "other", "absent.jsonl"
    file.write_text(yaml.safe_dump(content))
    assert main(["pipeline", "mine.yaml"]) == 2
    assert "error: step cold: dataset 'absent.jsonl': no such file" in capsys.readouterr().err


# ---- DeepSeek-R1's, made small ----

TAUGHT = pathlib.Path(__file__).parents[1] / "recipes" / "taught_model"
# On top of the recipe's own small form: few and short steps from a model that was taught the task before.
GROUPS = {"prompts_per_step": 4, "num_generations": 4}
SMALLER = {
    "cold-start": {"max_steps": 4, "learning_rate": 1e-3, "eval_samples": 0},
    "reasoning": GROUPS | {"max_steps": 2, "eval_prompts": 16},
    "rejection": {"prompts": 32, "prompts_per_step": 4},
    "from-the-base": {"num_train_epochs": None, "max_steps": 4, "learning_rate": 1e-3, "eval_samples": 0},
    "all-scenarios": GROUPS | {"max_steps": 1, "eval_prompts": 0},
}


@pytest.fixture(scope="module")
def r1(command, tmp_path_factory):
    """The recipe's small form, made smaller, in a process of one device; a model with random weights lies unused."""
    home = tmp_path_factory.mktemp("r1")
    content = yaml.safe_load((pathlib.Path(grpo_jax.recipes.__file__).parent / "r1.yaml").read_text())
    del content["recipe"]
    tiny = content["tiny"]
    tiny["inputs"] |= {"base": str(TAUGHT), "unused": "demo"}
    for name, changes in SMALLER.items():
        tiny[name] |= changes
    (home / "r1.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = command(["pipeline", "r1.yaml", "--tiny", "--output_dir", home / "out"], cwd=home).wait()
    assert done.returncode == 0, done.stderr
    return home / "out", done


def test_the_recipe_itself_is_ready_to_run(tmp_path, capsys):
    assert main(["pipeline", "r1", "--tiny", "--dry-run", "--output_dir", str(tmp_path / "out")]) == 0
    assert "200 steps" in capsys.readouterr().out


def test_r1_runs_to_the_end(r1):
    home, done = r1
    there = json.loads((home / "pipeline.json").read_text())["stages"]
    assert [entry["verb"] for entry in there.values()] == ["sft", "train", "reject", "sft", "train"]
    assert "what was done" in done.stdout
    summary = json.loads((home / "01-cold-start/summary.json").read_text())
    assert summary["after"]["perplexity"] < summary["before"]["perplexity"]
    words = ["perplexity ", "success ", "kept ", "perplexity ", "1 steps"]
    assert [entry["result"].startswith(word) for entry, word in zip(there.values(), words)] == [True] * 5


def test_the_input_demo_is_a_model_with_random_weights_in_the_pipelines_folder(r1):
    blank = r1[0] / "start"
    name = "model.embed_tokens.weight"
    assert open_folder(blank).keys() == open_folder(TAUGHT).keys()
    assert open_folder(blank)[name].open().shape == (SHAPE.vocab_size, SHAPE.hidden_size)


def test_r1s_second_fine_tuning_starts_from_the_base(r1):
    """Its second fine-tuning begins where the first one did, and reads what was verified."""
    first, second = (r1[0] / name for name in ("01-cold-start", "04-from-the-base"))
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second)]
    assert settings[0]["model"] == settings[1]["model"] == str(TAUGHT)
    assert settings[1]["dataset"] == str(r1[0] / "03-rejection/rows.jsonl")
    assert (first / "run.json").read_text() == (second / "run.json").read_text(), "the same weights"


def test_r1_keeps_only_correct_completions(r1):
    from grpo_jax.rewards.functions.countdown import countdown

    home, _ = r1
    rows = [json.loads(line) for line in (home / "03-rejection/rows.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        numbers, _, target = row["prompt"].rstrip(":").partition("=")
        given = {"numbers": [list(map(int, numbers.split()))], "target": [int(target)]}
        assert countdown([row["prompt"]], [row["completion"]], **given) == [1.0]
        assert row["provenance"]["run"] == str(home / "02-reasoning")
        assert row["provenance"]["step"] == 2


def test_r1_ends_with_a_model_that_loads(r1):
    ended = r1[0] / "05-all-scenarios/hf"
    params = load_params(ended, load_config(ended))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
