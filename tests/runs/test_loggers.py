"""metrics.jsonl across kills and resumes, and what any other logger of a run receives."""

import json

import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.loggers import LOGGERS, JsonlLogger, read_metrics
from grpo_jax.runs.run import Run
from grpo_jax.runs.zero_spread import ZeroSpreadNote


@pytest.fixture
def logger(tmp_path):
    return JsonlLogger(RunFolder(tmp_path))


def test_not_a_number_is_null_as_json_has_no_nan(logger, tmp_path):
    logger.log(1, {"reward": float("nan"), "kl": np.float32(0.5), "gap": np.inf, "n": np.int64(3)})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "reward": null, "kl": 0.5, "gap": null, "n": 3}\n'


def test_device_scalars_become_numbers(logger, tmp_path):
    import jax.numpy as jnp

    logger.log(1, {"grad_norm": jnp.float32(1.5)})
    assert read_metrics(RunFolder(tmp_path)) == [{"step": 1, "grad_norm": 1.5}]


def test_resume_drops_later_steps_and_the_half_written_line(logger, tmp_path):
    for step in (1, 2, 3, 4):
        logger.log(step, {"reward": 0.1 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    logger.start(3)
    logger.log(4, {"reward": 9.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["reward"] == 0.1 * 3  # bit for bit
    assert rows[3]["reward"] == 9.0


def test_half_written_line_that_parses_as_json_is_dropped(logger, tmp_path):
    logger.log(1, {"reward": 0.5})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n12')
    assert read_metrics(RunFolder(tmp_path)) == [{"step": 1}]


def test_a_run_that_logged_nothing_starts_again(logger, tmp_path):
    logger.start(0)
    assert read_metrics(RunFolder(tmp_path)) == []


class Listing:
    """A logger that keeps its rows, as one of another service would."""

    def __init__(self, folder, settings):
        self.rows, self.closed = [], 0

    def start(self, step):
        self.rows = [row for run in LISTINGS for row in run.rows if row["step"] <= step]

    def log(self, step, metrics):
        self.rows.append({"step": step, **metrics})

    def close(self):
        self.closed += 1


LISTINGS = []
"""The loggers of the runs of a test, in their order."""


@pytest.fixture
def listings(monkeypatch):
    def listing(*given):
        LISTINGS.append(Listing(*given))
        return LISTINGS[-1]

    monkeypatch.setattr("grpo_jax.runs.run.LOGGERS", [*LOGGERS, listing])
    LISTINGS.clear()
    return LISTINGS


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_logger_of_a_training_sees_each_step_once_and_is_closed_when_it_fails(train, listings):
    folder = train(dies_after=[4], save_steps=2, max_steps=4)
    died, resumed = listings
    assert [row["step"] for row in died.rows] == [1, 2, 3]  # the third is after the checkpoint: logged again
    assert [row["step"] for row in resumed.rows] == [1, 2, 3, 4]
    assert resumed.rows == written(folder)
    assert died.closed == resumed.closed == 1


@pytest.fixture
def fine_tune(tiny_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "say a", "completion": "aa"}\n' * 3)
    settings = {
        "model": tiny_model,
        "dataset": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "run",
        "max_steps": 3,
        "save_steps": 2,
        "rows_per_step": 8,
        "max_length": 32,
    }
    return lambda: main(["sft", *(f"--{name}={value}" for name, value in settings.items())])


def test_every_logger_of_a_fine_tuning_sees_each_step_once_and_is_closed_when_it_fails(
    fine_tune, listings, tmp_path, monkeypatch
):
    end_step = Run.end_step

    def dies(run, done, *given):
        if done == 3:
            raise RuntimeError("out of power")
        return end_step(run, done, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_step", dies)
        with pytest.raises(RuntimeError, match="out of power"):
            fine_tune()
    assert fine_tune() == 0
    died, resumed = listings
    assert [row["step"] for row in died.rows] == [row["step"] for row in resumed.rows] == [1, 2, 3]
    assert resumed.rows == written(tmp_path / "run")
    assert died.closed == resumed.closed == 1


def test_a_process_that_is_not_the_writer_has_no_loggers(tmp_path, listings):
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_steps": 0, "save_total_limit": 1}
    with Run(settings, {}) as run:
        run.restore({})
    with Run(settings, {}, is_writer=False) as run:
        run.restore({})
        run.log(1, {"reward": 1.0})
    assert run.loggers == []
    assert len(listings) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ---- the note on groups without spread ----


def noted(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "all equal" in line]


def flat_steps(logger, steps, share=1.0):
    for step in steps:
        logger.log(step, {"frac_reward_zero_std": share})


def test_three_steps_in_a_row_without_spread_are_noted_once(capsys):
    note = ZeroSpreadNote(list, {})
    flat_steps(note, [1, 2])
    flat_steps(note, [3], share=0.9)
    flat_steps(note, [4, 5])
    assert noted(capsys) == []
    flat_steps(note, [6])
    (line,) = noted(capsys)
    assert "steps 4-6" in line
    assert "dynamic_sampling" in line
    flat_steps(note, range(7, 20))
    assert noted(capsys) == []


def test_the_note_counts_on_and_does_not_come_again_after_a_resume(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    flat_steps(JsonlLogger(folder), [1, 2, 3, 4])
    halfway, told = (ZeroSpreadNote(lambda: read_metrics(folder), {}) for _ in range(2))
    halfway.start(2)
    told.start(4)
    flat_steps(halfway, [3])
    assert len(noted(capsys)) == 1
    flat_steps(told, [5, 6, 7])
    assert noted(capsys) == []


def test_the_note_does_not_advise_what_is_already_set(capsys):
    flat_steps(ZeroSpreadNote(list, {"dynamic_sampling": True}), [1, 2, 3])
    assert "dynamic_sampling" not in noted(capsys)[0]
