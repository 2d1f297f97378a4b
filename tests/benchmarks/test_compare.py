"""The pure pieces of benchmarks/compare.py, and its protocol with a worker of three lines. No environment is built."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
FAKE = """
import sys
sys.path.insert(0, {folder!r})
from serving import main, serve

def update():
    print("a library speaks")
    raise ValueError("one\\ntwo")

main(lambda line, spec: serve(line, {{"rollout": lambda: spec["tokens"], "update": update}}, None, versions={{}}))
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_lengths_fit_the_workload_and_are_skewed_only_where_asked():
    from comparison.work import WORKLOADS, lengths, tokens

    for name, work in WORKLOADS.items():
        found = lengths(work)
        assert found.shape == (work.prompts, work.samples)
        assert found.min() >= 1
        assert found.max() == work.completion_length
        assert tokens(work, "rollout") == found.sum()
        assert tokens(work, "score") == found.sum() + work.rows * work.prompt_length
        if name == "skewed":
            assert found.mean() * 8 == work.completion_length
            assert (found == found.max()).sum() == work.long_rows
        else:
            assert found.min() == found.max()


def test_the_tokens_of_rows_are_neither_padding_nor_end(tmp_path):
    from comparison.work import WORKLOADS, lengths, make_rows

    make_rows(tmp_path / "rows.npz", WORKLOADS["skewed"], vocabulary=50)
    with np.load(tmp_path / "rows.npz") as rows:
        inside = np.arange(512) < lengths(WORKLOADS["skewed"])[..., None]
        assert rows["prompts"].min() >= 2
        assert rows["completions"][inside].min() >= 2
        assert (rows["completions"][~inside] == 0).all()


def answer(seconds):
    return {"seconds": seconds, "peak_bytes": int(seconds), "processor_seconds": 1.0, "others_cores": 0.5}


def test_ratios_are_taken_round_by_round():
    """A machine that slows down for both between rounds does not move the ratio."""
    from comparison.figures import ratios, summary

    assert ratios([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "min": 2.0, "max": 3.0}
    found = summary([answer(4.0), answer(1.0), answer(2.0)], tokens=100)
    assert found["median_seconds"] == 2.0
    assert found["tokens_per_second"] == 50.0
    assert found["peak_bytes"] == 4


def test_table_shows_failures_in_their_row():
    from comparison.figures import remarks, table, with_ratios

    measured = lambda s: {
        "seconds": s,
        "median_seconds": s[0],
        "tokens_per_second": 1 / s[0],
        "peak_bytes": 2**30,
    }
    rows = {
        "ours": {"measures": {"rollout": measured([1.0]), "update": {"error": "no memory"}}},
        "trl": {"measures": {"rollout": measured([3.0]), "update": measured([3.0])}},
        "tunix": {"error": "No matching distribution"},
    }
    result = {
        "systems": with_ratios(rows),
        "same_model": {"agree": False, "largest_difference": {"trl": 0.5}},
    }
    lines = table({"equal": result}).splitlines()
    assert "NOT THE SAME MODEL" in remarks({"equal": result})[0]
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1
    assert "3.00 (3.00-3.00)" in lines[4]
    assert "no memory" in lines[3]
    assert "No matching distribution" in lines[6]
    assert "ratio" not in rows["trl"]["measures"]["update"]


@pytest.fixture
def worker(tmp_path):
    from comparison.workers import Worker

    program, spec = tmp_path / "fake.py", tmp_path / "spec.json"
    program.write_text(FAKE.format(folder=str(BENCHMARKS / "comparison")))
    spec.write_text(json.dumps({"tokens": 7}))
    made = Worker([sys.executable, str(program), str(spec)], tmp_path / "log", dict(os.environ), 60)
    yield made
    made.close()


def test_a_worker_answers_and_outlives_its_errors(worker):
    from comparison.workers import WorkerFailed

    with pytest.raises(WorkerFailed, match=r"^ValueError: two$"):
        worker.ask("update")
    answer = worker.ask("rollout")
    assert answer["tokens"] == 7
    assert answer["seconds"] >= 0
    assert 0 < answer["peak_bytes"] <= answer["process_peak_bytes"]
    assert "a library speaks" in worker.log.read_text()


def test_a_worker_that_dies_says_why(worker):
    from comparison.workers import WorkerFailed

    worker.process.kill()
    worker.process.wait()
    with pytest.raises(WorkerFailed, match="status -9"):
        worker.ask("rollout")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--systems", "ours", "trll"],
            "--systems: 'trll' is not one of ours, trl, tunix (did you mean 'trl'?)",
        ),
        (["--model", "9m"], "--model: '9m' is neither 10m nor 60m nor a folder"),
        (["--rounds", "0"], "--rounds = 0: at least 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(words, said):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "compare.py"), *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.strip()) == (2, said)
