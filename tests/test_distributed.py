"""Two processes of four devices train as one process of eight does."""

import contextlib
import json
import os
import re
import signal
import socket
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo_jax.cli import main
from grpo_jax.models.safetensors_io import open_folder

SMALL = 0.00004  # GiB: room for one of the two prompts that each part of the mesh draws for
# Adam divides by the gradient's size: a large epsilon keeps rounding noise small where there is none.
SETTINGS = {
    "mesh": "data=2,fsdp=2,tensor=2",
    "rollout_memory": SMALL,
    "max_steps": 4,
    "save_steps": 2,
    "adam_epsilon": 1e-2,
    "rollout_segment": 2,
    "max_completion_length": 4,
}


@pytest.fixture(scope="module")
def pair(command):
    """`pair(words)`: the command line in two processes of four devices, as [process, process]."""

    def start(words, log=os.devnull, seconds=0.0):
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        addresses = ["--coordinator", f"127.0.0.1:{port}", "--num_processes", "2", "--process_id"]
        slow = {"TINY_REWARDS_SECONDS": str(seconds)}
        logs = [{"TINY_REWARDS_LOG": f"{log}.{i}"} for i in range(2)]
        return [command([*words, *addresses, i], devices=4, **slow, **logs[i]) for i in range(2)]

    return start


def wait_for(processes):
    """[(exit status, stdout, stderr), ...]; none is left behind."""
    end = time.monotonic() + 240  # for all: if one of them hangs, so do the others
    ends = [process.wait(seconds=end - time.monotonic()) for process in processes]
    return [(end.returncode, end.stdout, end.stderr) for end in ends]


@pytest.fixture(scope="module")
def settings(tiny_settings, reward_model):
    """Of a run with two rewards; the model's counts for nothing, so that its rounding changes no weights."""
    counted = tiny_settings["rewards"].replace("vowels", "counted")
    rewards = {"rewards": f"{counted},model:{reward_model}", "reward_weights": "1,0"}
    return tiny_settings | SETTINGS | rewards


@pytest.fixture(scope="module")
def one(settings, options, tmp_path_factory):
    """The folder of the same run in this process, which has eight devices."""
    home = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_REWARDS_LOG", str(home / "calls"))
        assert main(["train", *options(settings | {"output_dir": home / "run"})]) == 0
    return home


@pytest.fixture(scope="module")
def two(pair, settings, options, tmp_path_factory):
    """(the folder of a run in two processes, how they ended); in between one of them got SIGTERM."""
    home = tmp_path_factory.mktemp("two")
    words = ["train", *options(settings | {"output_dir": home / "run"})]
    first = pair(words, home / "calls", seconds=0.2)  # slow steps, so that the signal comes within the second
    _wait_until((home / "run/metrics.jsonl").exists, first)
    first[1].send_signal(signal.SIGTERM)
    ends = wait_for(first)
    saved = sorted(path.name for path in (home / "run/checkpoints").iterdir())
    return home, ends, saved, wait_for(pair(words, home / "calls"))


def _wait_until(true, processes):
    while not true() and all(process.poll() is None for process in processes):
        time.sleep(0.01)


def test_sigterm_for_one_process_stops_both_after_a_save(two):
    _, ends, saved, _ = two
    assert [end[0] for end in ends] == [143, 143], ends[0][2] + ends[1][2]
    assert len(saved) == 1, "the step at which both agreed to stop"


def test_the_same_command_resumes_after_sigterm(two):
    assert [end[0] for end in two[3]] == [0, 0], two[3][0][2] + two[3][1][2]
    metrics = (two[0] / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4], "each step once, by one writer"


def test_two_processes_train_to_the_weights_of_one(one, two):
    ours, theirs = (open_folder(home / "run/hf") for home in (one, two[0]))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(theirs[name].open(), ours[name].open(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_two_processes_report_the_same_metrics_as_one(one, two):
    names = ("reward", "num_tokens", "completions/mean_length", "rewards/counted/std", "frac_reward_zero_std")
    rows = [
        [[json.loads(line)[name] for name in names] for line in (home / "run/metrics.jsonl").open()]
        for home in (one, two[0])
    ]
    assert rows[0] == rows[1]
    ends = [json.loads((home / "run/summary.json").read_text()) for home in (one, two[0])]
    for when in ("before", "after"):
        assert ends[0][when] == ends[1][when]


# What the collectives' library prints on stdout of each process; its threads break into one another's lines.
GLOO = r"\[Gloo\]|Rank|is connected to|Expected number of connected|peer ranks|is|[\d\s.:]"


def test_only_the_first_process_prints(two):
    for end in (two[1][1], two[3][1]):
        assert re.sub(GLOO, "", end[1]) == ""
    assert "4 steps, " in two[3][0][1]
    assert "the others wait" in two[3][0][1]


def test_each_process_scores_its_own_half_of_the_groups_once(one, two):
    """In all, each group as often as in one process, with the held-out prompts evaluated again after the restart."""
    calls = lambda file: sorted(file.read_text().splitlines())
    whole, halves = calls(one / "calls"), [calls(two[0] / f"calls.{i}") for i in (0, 1)]
    training = lambda lines: [line for line in lines if " train " in line]
    assert sorted(training(halves[0] + halves[1])) == training(whole)
    assert len(training(halves[0])) == len(training(halves[1])) == 4 * 4
    assert len(whole) == 4 * 8 + 2 * 8


def test_a_reward_model_scores_the_same_in_two_processes(one, two):
    """Both score all rows with it, and each keeps its own half."""
    for step in (1, 4):
        name = f"run/completions/completions_{step:05d}.parquet"
        ours, theirs = (pq.read_table(home / name).to_pydict() for home in (one, two[0]))
        assert ours["completion"] == theirs["completion"]
        assert len(set(ours["judge"])) > 8
        np.testing.assert_allclose(theirs["judge"], ours["judge"], rtol=1e-5, atol=1e-5)


def test_refused_settings_end_both_processes(pair, two, settings, options):
    """Neither waits for the other."""
    words = ["train", *options(settings | {"output_dir": two[0] / "run", "seed": 5})]
    start = time.monotonic()
    ends = wait_for(pair(words))
    assert [end[0] for end in ends] == [2, 2]
    assert "seed is 0 there and 5 here" in ends[0][2]
    assert time.monotonic() - start < 120


def test_one_process_exports_what_two_have_saved(two, tmp_path):
    assert main(["export", str(two[0] / "run"), str(tmp_path / "out")]) == 0
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "out", two[0] / "run/hf"))
    assert ours.read_bytes() == theirs.read_bytes()
