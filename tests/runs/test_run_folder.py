"""Opening an output folder: what may be resumed, what is refused, and that a refusal touches nothing."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.runs import files
from grpo_jax.runs.folder import MAY_DIFFER, RunFolder, model_fingerprint, open_run

SETTINGS = {"model": "demo", "seed": 0, "learning_rate": 1e-6, "rewards": ["countdown"], "save_steps": 50}
MODEL = {"config": "c0", "tensors": "t0"}


def start(path, settings=SETTINGS, model=MODEL):
    open_run(path, settings, model).close()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fresh_folder_holds_the_whole_configuration(tmp_path):
    start(tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == SETTINGS
    assert RunFolder(tmp_path / "run").settings() == SETTINGS


def test_same_settings_resume_even_when_given_as_tuples(tmp_path):
    start(tmp_path / "run")
    before = contents(tmp_path / "run")
    start(tmp_path / "run", SETTINGS | {"rewards": ("countdown",)})
    assert contents(tmp_path / "run") == before


def test_other_settings_are_refused_with_both_values(tmp_path):
    start(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"learning_rate is 1e-06 there and 2e-06 here; seed is 0 .* 1 here"):
        start(tmp_path / "run", SETTINGS | {"learning_rate": 2e-6, "seed": 1})
    assert contents(tmp_path / "run") == before


def test_many_differences_stay_one_line(tmp_path):
    start(tmp_path / "run", {f"field{i}": i for i in range(9)})
    with pytest.raises(UserError, match="and 6 more") as refused:
        start(tmp_path / "run", {f"field{i}": -i - 1 for i in range(9)})
    assert "\n" not in str(refused.value)


def test_setting_that_the_old_run_did_not_have_is_a_difference(tmp_path):
    start(tmp_path / "run")
    with pytest.raises(UserError, match="top_k is absent there and 5 here"):
        start(tmp_path / "run", SETTINGS | {"top_k": 5})


@pytest.mark.parametrize("name", sorted(MAY_DIFFER))
def test_settings_that_do_not_change_the_result_may_differ(tmp_path, name):
    start(tmp_path / "run", SETTINGS | {name: 1})
    start(tmp_path / "run", SETTINGS | {name: 2})


def test_max_steps_may_not_differ_as_the_learning_rate_depends_on_it():
    assert "max_steps" not in MAY_DIFFER


def test_another_model_is_refused(tmp_path):
    start(tmp_path / "run")
    with pytest.raises(UserError, match=r"another model \(its tensors differ"):
        start(tmp_path / "run", model=MODEL | {"tensors": "t1"})


def test_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="output folder in use"):
        start(tmp_path)
    assert contents(tmp_path) == {epath.Path("thesis.tex"): b"years of work"}


def test_output_dir_that_is_a_file_or_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        start(tmp_path / "file")
    with pytest.raises(UserError, match="output_dir"):
        start(tmp_path / "file" / "run")


def test_a_reader_sees_the_old_file_whole_while_it_is_replaced(tmp_path):
    files.write_atomically(tmp_path / "summary.json", "old")
    with open(tmp_path / "summary.json") as reader:
        files.write_atomically(tmp_path / "summary.json", "new and longer")
        assert reader.read() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "new and longer"


def test_start_killed_before_its_configuration_was_written_can_be_repeated(tmp_path):
    start(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / ".config.yaml.123.tmp").write_text("mod")
    start(tmp_path / "run", model={"config": "c1", "tensors": "t1"})
    start(tmp_path / "run", model={"config": "c1", "tensors": "t1"})


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_unreadable_files_of_a_run_are_named(tmp_path, name):
    start(tmp_path / "run")
    (tmp_path / "run" / name).write_text("{")
    with pytest.raises(UserError, match=name):
        start(tmp_path / "run")


def test_other_processes_of_the_run_check_but_write_nothing(tmp_path):
    run = open_run(tmp_path / "run", SETTINGS, MODEL, is_writer=False)
    run.write_summary({"steps": 1})
    assert not (tmp_path / "run").exists()


def test_summary_comes_back_and_is_none_before_the_end(tmp_path):
    with open_run(tmp_path / "run", SETTINGS, MODEL) as run:
        assert run.summary() is None
        run.write_summary({"steps": 200, "after": 0.5})
        assert run.summary() == {"steps": 200, "after": 0.5}


HOLDER = """
import os, sys, time
from grpo_jax.runs.folder import open_run
run = open_run(sys.argv[1], {"seed": 0}, {})
child = os.fork()                      # a worker that outlives the run must not keep its folder locked
if child == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_second_process_is_kept_out_until_the_first_dies_even_by_kill_9(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    orphan = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            start(tmp_path, {"seed": 0}, {})
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(orphan, 0)  # still there
        start(tmp_path, {"seed": 0}, {})
    finally:
        os.kill(orphan, signal.SIGKILL)
        holder.kill()
        holder.communicate()


def test_closed_run_can_be_opened_again_in_the_same_process(tmp_path):
    run = open_run(tmp_path, SETTINGS, MODEL)
    with pytest.raises(UserError, match="in use by process"):
        open_run(tmp_path, SETTINGS, MODEL)
    run.close()
    start(tmp_path)


def test_atomic_write_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    files.write_atomically(tmp_path / "summary.json", "old")

    def full(self, data):
        self.write_text("ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "summary.json", "new")
    assert contents(tmp_path) == {epath.Path("summary.json"): b"old"}


def test_fingerprint_tells_shapes_and_configurations_apart():
    config, params = {"num_layers": 2}, {"embed": np.zeros((8, 4)), "norm": np.zeros(4)}
    same = model_fingerprint(dict(config), {"norm": np.ones(4), "embed": np.ones((8, 4))})
    assert model_fingerprint(config, params) == same
    assert model_fingerprint({"num_layers": 3}, params)["config"] != same["config"]
    assert model_fingerprint(config, params | {"norm": np.zeros(5)})["tensors"] != same["tensors"]
    assert model_fingerprint(config, {"embed": params["embed"]})["tensors"] != same["tensors"]


def test_bucket_without_its_package_is_a_user_error(monkeypatch):
    def unreachable(self):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://b/r")), "exists", unreachable)
    with pytest.raises(UserError, match=r"output_dir: gs://b/r cannot be reached: .*gcsfs"):
        open_run("gs://b/r", SETTINGS, MODEL)


@pytest.fixture
def bucket(monkeypatch):
    """gs:// paths kept in memory, so that what only works on a local disk fails."""
    import fsspec
    from etils.epath import backend

    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: fsspec.filesystem("memory")
    )
    monkeypatch.setattr(epath.gpath, "_get_backend", lambda *paths: backend.fsspec_backend)
    return f"gs://bucket/{time.time_ns()}"


def test_run_in_a_bucket_starts_and_resumes(bucket):
    from grpo_jax.runs.loggers import JsonlLogger, read_metrics

    for reward in (1.0, 2.0):
        run = open_run(bucket, SETTINGS, MODEL)
        JsonlLogger(run).log(int(reward), {"reward": reward})
    assert [row["reward"] for row in read_metrics(run)] == [1.0, 2.0]
    assert not os.path.exists("gs:")
    with pytest.raises(UserError, match="seed"):
        open_run(bucket, SETTINGS | {"seed": 1}, MODEL)
