"""Rejection sampling as a person types it: rows that `sft` learns from, and a count of the others."""

import json
import shutil

import pytest

from grpo_jax.cli import main


@pytest.fixture(scope="module")
def settings(tiny_settings):
    """At least two vowels, of four samples to each of eight prompts, in pieces of three."""
    return {name: tiny_settings[name] for name in ("model", "dataset", "rewards", "reward_workers")} | {
        "dataset_split": "test",
        "samples": 4,
        "thresholds": "{vowels: 2}",
        "prompts_per_step": 3,
        "max_prompt_length": 32,
        "max_completion_length": 32,
        "stop_strings": '["a", "e", "i"]',
        "keep_per_prompt": 2,
        "mesh": "data=1",
    }


@pytest.fixture(scope="module")
def done(settings, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reject") / "run"
    assert main(["reject", *options(settings | {"output_dir": folder})]) == 0
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def candidates_of(folder):
    pieces = sorted((folder / "pieces").iterdir())
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


def test_kept_rows_meet_the_threshold_and_name_their_origin(done, settings):
    rows, all_ = rows_of(done), candidates_of(done)
    assert len(all_) == 32
    assert rows
    for row in rows:
        assert sum(letter in "aeiouAEIOU" for letter in row["completion"]) >= 2
        said = row["provenance"]
        assert said["rewards"]["vowels"] >= 2
        assert (said["model"], said["dataset"], said["split"]) == (
            settings["model"],
            settings["dataset"],
            "test",
        )
        assert row["prompt"] == f"test {said['uid']}: say a"
        assert said["sample"] in range(4)
        assert {"seed", "temperature", "weights", "tokens"} <= said.keys()
    assert all(one["finished"] for one in all_ if one["provenance"] in [row["provenance"] for row in rows])


def test_the_summary_counts_every_sample_once(done):
    summary = json.loads((done / "summary.json").read_text())
    assert summary["kept"] + sum(summary["dropped"].values()) == summary["samples"] == 32
    assert summary["kept"] == len(rows_of(done))
    assert set(summary["dropped"]) <= {
        "truncated",
        "empty",
        "vowels below 2",
        "enough of the prompt",
        "duplicate",
    }


def test_a_command_that_was_killed_ends_with_the_same_rows(done, settings, options, tmp_path):
    """A piece is lost, with the files that were made of all pieces; the second run has another mesh."""
    other = shutil.copytree(done, tmp_path / "run")
    for name in ("pieces/piece_00001.jsonl", "rows.jsonl", "summary.json"):
        (other / name).unlink()
    whole = (other / "pieces/piece_00000.jsonl").stat().st_mtime_ns
    assert main(["reject", *options(settings | {"output_dir": other, "mesh": "data=2,fsdp=2,tensor=2"})]) == 0
    assert (other / "pieces/piece_00000.jsonl").stat().st_mtime_ns == whole, (
        "a finished piece is not sampled again"
    )
    for name in ("pieces/piece_00001.jsonl", "rows.jsonl", "summary.json"):
        assert (other / name).read_bytes() == (done / name).read_bytes(), name


def test_the_system_prompt_is_written_into_the_rows(settings, options, tmp_path):
    """So `sft`, which has no system prompt of its own, reads the prompt that was answered."""
    more = {
        "output_dir": tmp_path / "run",
        "system_prompt": "Sing.",
        "prompts": 2,
        "samples": 1,
        "max_prompt_length": 99,
    }
    assert main(["reject", *options(settings | more | {"thresholds": "{vowels: -1}"})]) == 0
    one = candidates_of(tmp_path / "run")[0]
    assert [message["role"] for message in one["prompt"]] == ["system", "user"]
    assert "Sing." in one["text"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"thresholds": "{vowel: 1}"},
            "thresholds: vowel (did you mean 'vowels'?) is none of the rewards, vowels",
        ),
        ({"thresholds": "{vowels: many}"}, "thresholds: vowels = 'many': must be a number"),
        ({"thresholds": "{vowels: .nan}"}, "thresholds: vowels = nan: must be a number"),
        ({"layout": "nope"}, "layout = 'nope': no such layout"),
        ({"layout": "gsm8k"}, "gsm8k"),
        ({"temperature": 0}, "samples = 4: greedy samples are all the same"),
        ({"rewards": "vowels"}, "rewards: nothing is called 'vowels'"),
    ],
)
def test_bad_input_is_refused_before_a_folder_is_made(settings, options, tmp_path, capsys, changes, why):
    assert main(["reject", *options(settings | changes | {"output_dir": tmp_path / "run"})]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_of_other_prompts_is_refused(done, settings, options, tmp_path, capsys):
    """The data set's file has lost rows since, so the samples belong to other prompts."""
    rows = tmp_path / "rows"
    shutil.copytree(settings["dataset"], rows)
    command = ["reject", *options(settings | {"dataset": rows, "output_dir": tmp_path / "run", "samples": 1})]
    assert main(command) == 0
    file = next(rows.glob("test*"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert main(command) == 2
    assert "holds a run of other prompts (its prompts differ)" in capsys.readouterr().err


def test_a_folder_with_a_run_of_other_settings_is_refused(done, settings, options, capsys):
    assert main(["reject", *options(settings | {"output_dir": done, "seed": 1})]) == 2
    assert "holds a run with other settings: seed is 0 there and 1 here" in capsys.readouterr().err
