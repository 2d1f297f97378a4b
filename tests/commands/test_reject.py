"""Rejection sampling as a person types it: rows that `sft` learns from, and an account of the others."""

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


def test_rows_are_verified_and_say_where_they_come_from(done, settings):
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


def test_the_account_adds_up(done):
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
    """A piece is lost with all that came of them; on another mesh, too."""
    other = shutil.copytree(done, tmp_path / "run")
    for name in ("pieces/piece_00001.jsonl", "rows.jsonl", "summary.json"):
        (other / name).unlink()
    whole = (other / "pieces/piece_00000.jsonl").stat().st_mtime_ns
    assert main(["reject", *options(settings | {"output_dir": other, "mesh": "data=2,fsdp=2,tensor=2"})]) == 0
    assert (other / "pieces/piece_00000.jsonl").stat().st_mtime_ns == whole, "it was there"
    for name in ("pieces/piece_00001.jsonl", "rows.jsonl", "summary.json"):
        assert (other / name).read_bytes() == (done / name).read_bytes(), name


def test_a_system_prompt_is_in_the_rows(settings, options, tmp_path):
    """So that `sft`, which is not told of it, sees the prompt that was answered."""
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
def test_bad_input_that_leaves_a_folder(settings, options, tmp_path, capsys, changes, why):
    assert main(["reject", *options(settings | changes | {"output_dir": tmp_path / "run"})]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_prompts_in_the_same_folder(done, settings, options, tmp_path, capsys):
    """The data set's file has changed, or lost rows: what was sampled is of others."""
    rows = tmp_path / "rows"
    shutil.copytree(settings["dataset"], rows)
    command = ["reject", *options(settings | {"dataset": rows, "output_dir": tmp_path / "run", "samples": 1})]
    assert main(command) == 0
    file = next(rows.glob("test*"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert main(command) == 2
    assert "holds a run of other prompts (its prompts differ)" in capsys.readouterr().err


def test_other_settings_in_the_same_folder(done, settings, options, capsys):
    assert main(["reject", *options(settings | {"output_dir": done, "seed": 1})]) == 2
    assert "holds a run with other settings: seed is 0 there and 1 here" in capsys.readouterr().err
