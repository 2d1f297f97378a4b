"""A run that was killed, and started again by the same command, ends as if nothing had happened."""

import asyncio
import json
import os
import shutil
import signal

import numpy as np
import orbax.checkpoint
import pytest

from grpo_jax.cli import main
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.runs.run import TERMINATED

pytestmark = pytest.mark.usefixtures("shared_programs")

POINTS = (
    "while weights load",
    "while saving the first checkpoint",
    "in the middle of a line",
    "between steps",
    "while exporting",
    "never",
)
# Settings that use every part of the trainer: a reference that moves between two checkpoints, old log-probs, several
# updates of each rollout, groups that are carried over from step to step, an adaptive entropy bonus.
EVERY_PART = {
    "dynamic_sampling": True,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_target": 4.0,
    "beta": 0.1,
    "sync_ref_model": True,
    "ref_model_sync_steps": 7,
    "num_iterations": 2,
    "num_minibatches": 2,
    "micro_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "eval_steps": 3,
    "save_steps": 3,
}
CLOCKS = (
    "time/",
    "compilations/",
    "step_time",
    "tokens_per_second",
    "rollout_tokens_per_second",
    "peak_memory",
)


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clocks(row):
    return {name: value for name, value in row.items() if not name.startswith(CLOCKS)}


def tensors_saved(run, step=5):
    """Name -> [shape, dtype, digest] of every tensor of a checkpoint: weights, moments, counts."""
    return json.loads((run / "checkpoints" / str(step) / "notes" / "metadata").read_text())["tensors"]


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_same_end(run, other):
    """Bit by bit: the whole state, the export, every metric that is not a time."""
    assert tensors_saved(run) == tensors_saved(other)
    assert files_of(run / "hf") == files_of(other / "hf")
    rows = [list(map(without_clocks, metrics_of(folder))) for folder in (run, other)]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5]
    assert rows[0] == rows[1]
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    assert [end["before"] for end in ends] == [ends[0]["before"]] * 2
    assert [end["after"] for end in ends] == [ends[0]["after"]] * 2
    assert ends[0]["num_tokens"] == ends[1]["num_tokens"]


# ---- killed without notice ----


@pytest.fixture(scope="module")
def killed(command, options, tiny_settings, tmp_path_factory):
    """(an uninterrupted run, one that was killed at every point in turn, that one's processes)."""
    home = tmp_path_factory.mktemp("killed")
    settings = tiny_settings | EVERY_PART
    start = lambda point, given: command(["train", *options(given)], point).wait()
    whole = start("never", settings | {"output_dir": home / "whole"})
    assert whole.returncode == 0, whole.stderr
    starts = []
    for point in POINTS:
        starts.append(start(point, settings | {"output_dir": home / "killed"}))
        if point == "while saving the first checkpoint":
            assert list((home / "killed" / "checkpoints").glob("3.*tmp*")), "no save was under way"
    return home / "whole", home / "killed", starts


def test_the_run_was_killed_at_every_point(killed):
    codes = {point: start.returncode for point, start in zip(POINTS, killed[2])}
    assert codes == dict.fromkeys(POINTS, -signal.SIGKILL) | {"never": 0}, killed[2][-1].stderr


def test_groups_were_carried_over_when_the_run_was_killed(killed):
    """Otherwise the next test would not cover carried-over groups."""
    note = json.loads((killed[1] / "checkpoints/3/notes/metadata").read_text())
    assert note["extra"]["carried"]["tickets"]
    assert "step 3/5" not in killed[2][-2].stderr, "it went on from there"
    rows = metrics_of(killed[1])
    assert max(row["dynamic_sampling/rollouts"] for row in rows) > 1
    assert len({row["entropy_coef"] for row in rows}) > 2


def test_a_killed_run_ends_bit_by_bit_like_one_never_killed(killed):
    whole, run, _ = killed
    assert_same_end(run, whole)


def test_the_run_has_learned_something(killed, tiny_model):
    rows = metrics_of(killed[0])
    assert min(row["grad_norm"] for row in rows) > 0
    assert max(row["kl"] for row in rows) > 0
    before, after = (
        open_folder(folder)["model.layers.0.mlp.up_proj.weight"].open()
        for folder in (tiny_model, killed[0] / "hf")
    )
    assert np.abs(before - after).max() > 1e-2


def test_finished_steps_are_not_done_twice(killed):
    last = killed[2][-1]
    assert "step 5/5" not in last.stderr, "after the kill in the export no step was left"
    assert "step 5/5" in killed[2][-2].stderr


def test_no_temporary_file_is_left(killed):
    left = [p.name for p in killed[1].rglob("*") if "tmp" in p.name or "partial" in p.name]
    assert left == []


# ---- in this process ----

# Adam divides by the gradient's size: a large epsilon keeps rounding noise small where there is none.
CALM = {"mesh": "data=1", "adam_epsilon": 1e-2, "eval_prompts": 0, "beta": 0.1}  # with a fixed reference


@pytest.fixture(scope="module")
def train(tiny_settings, options):
    """`train(folder, **changes)`: the command on one device, or another mesh."""
    return lambda folder, **changes: main(
        ["train", *options(tiny_settings | CALM | {"output_dir": folder} | changes)]
    )


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run from beginning to end that keeps all its checkpoints, each of which is slow to write; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    write = orbax.checkpoint.JsonCheckpointHandler._save_fn

    async def slow(*given):
        await asyncio.sleep(0.3)
        await write(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax.checkpoint.JsonCheckpointHandler, "_save_fn", slow)
        assert train(folder, save_total_limit=0) == 0
    return folder


@pytest.fixture(scope="module")
def terminated(train, tmp_path_factory):
    """(a run that got SIGTERM in the middle of step 3, its exit status); read only."""
    from grpo_jax.training.advantages import GroupAdvantages

    folder = tmp_path_factory.mktemp("terminated") / "run"
    calls, compute = [], GroupAdvantages.__call__

    def terminating(*given):
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupAdvantages, "__call__", terminating)
        with pytest.raises(SystemExit) as end:
            train(folder)
    return folder, end.value.code


@pytest.fixture
def copy(whole, tmp_path):
    """The whole run, to be changed."""
    return shutil.copytree(whole, tmp_path / "run")


def test_sigterm_saves_after_the_step_and_ends(terminated):
    folder, code = terminated
    assert code == TERMINATED == 143
    assert (folder / "checkpoints/3").is_dir(), "the step under way ends and is saved, due or not"
    assert [row["step"] for row in metrics_of(folder)] == [1, 2, 3]
    assert not (folder / "hf").exists()


def test_a_run_resumes_after_sigterm_and_may_save_more_often(train, whole, terminated, tmp_path):
    run = shutil.copytree(terminated[0], tmp_path / "run")
    assert train(run, save_steps=1, save_total_limit=0) == 0
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [2, 3, 4, 5]
    assert_same_end(run, whole)


def test_a_run_resumes_on_another_mesh_to_the_same_weights_up_to_rounding(train, whole, terminated, tmp_path):
    run = shutil.copytree(terminated[0], tmp_path / "run")
    assert train(run, mesh="data=2,fsdp=2,tensor=2") == 0
    one, two = (open_folder(folder / "hf") for folder in (whole, run))
    for name in one:
        np.testing.assert_allclose(two[name].open(), one[name].open(), rtol=1e-5, atol=1e-6, err_msg=name)
    same = ("reward", "num_tokens", "completions/mean_length")
    picked = [[[row[n] for n in same] for row in metrics_of(folder)] for folder in (whole, run)]
    assert picked[0] == picked[1], "the same completions on either mesh"


def test_a_finished_run_started_again_changes_nothing(train, whole, copy, capsys):
    """Nor the signal handler of the caller."""
    mine = lambda *_: None
    before = signal.signal(signal.SIGTERM, mine)
    try:
        assert train(copy) == 0
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_same_end(copy, whole)
    assert (copy / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    shown = capsys.readouterr().out
    assert "step 5/5" not in shown
    assert "5 steps, " in shown


def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before(train, whole, copy, capsys):
    """Each kind of damage: tests/runs/test_checkpoints.py."""
    newest = copy / "checkpoints" / "5"
    flip_a_bit_of(newest)
    shutil.rmtree(copy / "hf")
    assert train(copy) == 0
    said = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged: " in said
    assert "trying step 4" in said
    assert_same_end(copy, whole)


def flip_a_bit_of(checkpoint):
    files = [file for file in (checkpoint / "state").rglob("*") if file.is_file()]
    biggest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 16
    biggest.write_bytes(content)


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(train, copy, capsys):
    for checkpoint in (copy / "checkpoints").iterdir():
        (checkpoint / "notes" / "metadata").write_text("{")
    before = files_of(copy)
    assert train(copy) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "nothing to restore" in error
    assert files_of(copy) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 2e-2}, "learning_rate is 0.01 there and 0.02 here"),
        ({"max_steps": 6}, "max_steps is 5 there and 6 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_a_folder_of_another_run_is_refused(train, copy, change, words, capsys):
    before = files_of(copy)
    assert train(copy, **change) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) <= 2
    assert files_of(copy) == before


def test_a_folder_of_another_model_is_refused(train, copy, tiny_model, capsys, monkeypatch):
    """The path is the same, but it holds another model."""
    settings = (copy / "config.yaml").read_text()
    other = shutil.copytree(tiny_model, copy.parent / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5e4}))
    (copy / "config.yaml").write_text(settings.replace(str(tiny_model), str(other)))
    before = files_of(copy)
    assert train(copy, model=other) == 2
    assert "holds a run of another model" in capsys.readouterr().err
    assert files_of(copy) == before


def test_a_slow_save_writes_the_state_when_it_began(whole):
    """The loop goes on while the files are written; what it changes meanwhile belongs to the next save."""
    rows = metrics_of(whole)
    for step in (2, 4):
        saved = json.loads((whole / "checkpoints" / str(step) / "notes/metadata").read_text())["extra"]
        assert saved["num_tokens"] == rows[step - 1]["num_tokens"]
