"""Samples as text: which, how many, and that a run which goes on writes none twice."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.samples import ALL, SUCCESSES, Samples, chosen
from grpo_jax.training.completion_log import shortened
from grpo_jax.training.metrics import show
from grpo_jax.training.reflection import load_reflection

pytestmark = pytest.mark.usefixtures("shared_programs")

RATES = {"completion_samples": 0.5, "success_samples": 1.0, "max_steps": 4, "reflection": "words"}


@pytest.fixture(scope="module")
def run(train):
    return train(**RATES)


def entries(run, name):
    return (run / name).read_bytes().decode().split("\n\n==== ")[1:]


def test_sample_files_hold_every_success_and_half_of_all_completions(run):
    rows = []
    for step in range(1, 5):
        table = pq.read_table(run / "completions" / f"completions_{step:05d}.parquet").to_pylist()
        rows += [(step, i % 2, row) for i, row in enumerate(table)]
    won = [row for row in rows if row[2]["vowels"] >= 1]
    assert 0 < len(won) < len(rows)
    found = entries(run, SUCCESSES)
    assert len(found) == len(won)
    for entry, (step, sample, row) in zip(found, won):
        title, _, text = entry.partition(" ====\n")
        assert title.startswith(f"step {step}, prompt ")
        assert title.endswith(f", sample {sample}, reward {row['vowels']:.4g}, reflection: none")
        assert text == f"{row['prompt']}{row['completion']}\n"
    texts = {f"{row['prompt']}{row['completion']}\n" for _, _, row in rows}
    some = [entry.partition(" ====\n")[2] for entry in entries(run, ALL)]
    assert 20 < len(some) < 44, "about half of 64"
    assert set(some) <= texts


def test_a_resumed_run_writes_each_sample_once(run, train):
    other = train(dies_after=(2,), **RATES)
    for name in (ALL, SUCCESSES):
        assert (other / name).read_bytes() == (run / name).read_bytes()


def test_a_run_without_sample_rates_writes_no_sample_files_and_shows_one_sample(train, capfd):
    run = train(max_steps=2)
    (shown,) = capfd.readouterr().err.split("Step 1: ")[1:]
    rows = pq.read_table(run / "completions" / "completions_00001.parquet").to_pylist()[:2]
    best = max(rows, key=lambda row: row["vowels"])
    assert f"completion: {best['completion']}" in shown
    assert f"vowels: {best['vowels']:.4g}" in shown
    assert f"advantage: {best['advantage']:.4g}" in shown
    assert not (run / ALL).exists()
    assert not (run / SUCCESSES).exists()


def test_a_long_text_is_shown_without_its_middle():
    assert shortened("x" * 10, 10) == "x" * 10
    assert (
        shortened("a" * 50 + "b" * 1000 + "c" * 50, 100)
        == f"{'a' * 50} [... 1,000 characters ...] {'c' * 50}"
    )


def test_only_the_writer_truncates_sample_files_and_to_the_recorded_size(tmp_path):
    (tmp_path / "run").mkdir()
    samples = Samples(RunFolder(tmp_path / "run"))
    samples.append(ALL, ["é", "è"])
    sizes = samples.sizes()
    samples.append(ALL, ["lost"])
    Samples(RunFolder(tmp_path / "run", is_writer=False)).truncate({})
    samples.truncate(sizes)
    assert (tmp_path / "run" / ALL).read_text(encoding="utf-8") == "éè"
    samples.truncate({})
    assert (tmp_path / "run" / ALL).read_bytes() == b""


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_samples_are_chosen_at_their_rate(rate):
    picks = np.concatenate([chosen(3, step, 500, rate, 0) for step in range(20)])
    assert picks.mean() == pytest.approx(rate, abs=0.01)
    if rate == 0.1:
        other = np.concatenate([chosen(3, step, 500, rate, 1) for step in range(20)])
        assert 0 < (picks & other).mean() < 0.03, "the two files choose independently"


def test_samples_on_the_terminal_show_their_reflection(tmp_path, capsys):
    sample = {"prompt": "p", "completion": "Wait, let me check", "reward": 1.0}
    end = {"summary": {"success": 1.0}, "samples": [sample]}
    summary = {"before": end["summary"], "after": end["summary"], "steps": 1, "num_tokens": 1, "seconds": 1.0}
    summary |= {"peak_memory": 1, "peak_memory_of": "x"}
    show(summary, end, end, RunFolder(tmp_path), load_reflection("words"))
    assert "reflection: " in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "words"), [(1, "1 step, "), (2, "2 steps, ")])
def test_the_last_lines_count_steps_in_words(tmp_path, capsys, steps, words):
    summary = {"steps": steps, "num_tokens": 1, "seconds": 1.0, "peak_memory": 1, "peak_memory_of": "x"}
    show(summary, None, None, RunFolder(tmp_path), None)
    assert capsys.readouterr().out.startswith(words)
