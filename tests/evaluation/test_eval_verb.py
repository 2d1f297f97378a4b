"""The verb `eval` with task files, from the command line: the files it writes, figures that depend on the problem
alone, and what it refuses before a weight is read."""

import contextlib
import io
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from grpo_jax.cli import main
from grpo_jax.models import hf

TASK = """
about: numbers, wherever they may come from
source: the tests
dataset: nowhere
split: test
prompt: "{question} a number, please"
system_prompt: Numbers.
answer: number
place: hash
samples: 3
temperature: 1.5
max_prompt_length: 128
max_completion_length: 12
"""

REWARD = """
def vowels(completions, log_metric, **columns):
    counts = [float(sum(letter in "aeiou" for letter in said[0]["content"])) for said in completions]
    log_metric("most", max(counts))
    return counts
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a task file and its rows."""
    home = tmp_path_factory.mktemp("place")
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(9)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "task.yaml").write_text(TASK)
    (home / "mine.py").write_text(REWARD)
    return home


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    """A folder with a task file and its rows, in which the verb is typed."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def usual(tiny_model):
    return {
        "model": tiny_model,
        "task": "task.yaml",
        "data": "rows.jsonl",
        "reward_workers": 1,
        "rewards": "mine.py:vowels",
        "mesh": "data=1",
        "prompts_per_step": 4,
        "output": "out/results.json",
    }


@pytest.fixture
def typed(place, usual, options, capsys, shared_programs):
    """`typed(**settings)`: (exit code, stdout, stderr) of `eval`."""

    def run(**settings):
        given = {name: value for name, value in (usual | settings).items() if value is not None}
        code = main(["eval", *options(given)])
        return code, *capsys.readouterr()

    return run


def kept(place, name="out/results"):
    table = pq.read_table(place / f"{name}.parquet").to_pydict()
    return json.loads((place / f"{name}.json").read_text()), table


LAYOUTS = [
    {"mesh": "data=1", "prompts_per_step": 4},
    {"mesh": "fsdp=2,tensor=2", "prompts_per_step": 8},
]


@pytest.fixture(scope="module")
def measured(folder, usual, options, tmp_path_factory, shared_programs):
    """(what is printed, the JSON file, the table) of the task in each layout."""
    found = []
    with contextlib.chdir(folder):
        for layout in LAYOUTS:
            home = tmp_path_factory.mktemp("measured")
            given = usual | layout | {"pass_k": "2,3", "output": home / "results.json"}
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert main(["eval", *options(given)]) == 0
            found.append((said.getvalue(), *kept(home, "results")))
    return found


def test_figures_depend_neither_on_the_batch_nor_on_the_mesh(measured):
    """Every completion, to the letter, and every figure. Repeats, which do not count, fill up the last of 9 prompts."""
    _, results, table = measured[0]
    assert results["sampled"]["prompts"] == 9
    assert len(set(table["completion"])) > 20
    assert 0 < results["sampled"]["flexible"]["answered"] < 1
    assert results["sampled"]["rewards/vowels/mean"] > 0
    assert results["sampled"]["most"] > results["sampled"]["rewards/vowels/mean"]
    assert measured[1][1:] == (results, table)


def test_the_written_files_agree_with_each_other(measured):
    out, results, table = measured[0]
    assert (results["samples"], results["temperature"], results["data"]) == (3, 1.5, "rows.jsonl")
    assert len(table["way"]) == 9 + 9 * 3
    assert set(table) >= {"prompt", "strict", "flexible", "vowels", "strict/answer", "flexible/vote"}
    assert "<|im_start|>system\nNumbers." in table["prompt"][0]
    sampled = slice(9, None)
    figures = results["sampled"]["flexible"]
    assert set(figures) == {
        *("avg@3", "pass@2", "pass@3", "maj@3", "answered"),
        *("avg@3_stderr", "pass@2_stderr", "pass@3_stderr", "maj@3_stderr"),
    }
    assert sum(table["flexible"][sampled]) / 27 == pytest.approx(figures["avg@3"])
    found = [answer is not None for answer in table["flexible/answer"][sampled]]
    assert sum(found) / 27 == pytest.approx(figures["answered"])
    assert results["problems"]["sampled"]["flexible"] == [
        sum(table["flexible"][9 + 3 * p : 12 + 3 * p]) for p in range(9)
    ]
    assert set(results["greedy"]["strict"]) == {"success", "success_stderr", "answered"}
    assert re.search(r"maj@3 .*\d ± ", out)


def test_two_results_are_compared_problem_by_problem(typed, measured, place, monkeypatch):
    (place / "first.json").write_text(json.dumps(measured[0][1]))
    code, out, _ = typed(greedy=False, compare="first.json", top_k=3)
    assert code == 0
    results, _ = kept(place)
    before = json.loads((place / "first.json").read_text())
    difference = results["difference"]["sampled"]["flexible"]
    means = [each["sampled"]["flexible"]["avg@3"] for each in (before, results)]
    assert difference["avg@3"] == pytest.approx(means[1] - means[0])
    assert "sampled, flexible: avg@3" in out
    for changes, said in (
        ({"samples": 4}, r"averages over 3 samples of each prompt, here 4; .* write --samples 3"),
        ({"prompts": 4}, r"compare = first.json: other prompts were asked there; set prompts as it was"),
        ({"split": "train"}, r"its split is 'test', here 'train'; only results on the same problems"),
    ):
        monkeypatch.setattr(hf, "load_params", lambda *_: pytest.fail("weights were read"))
        code, _, error = typed(greedy=False, compare="first.json", **changes)
        assert code == 2
        assert re.search(said, error), error


def test_results_of_a_runs_export_go_into_its_folder(typed, place, tiny_model):
    run = place / "run"
    shutil.copytree(tiny_model, run / "hf")
    for name in ("config.yaml", "run.json"):
        (run / name).write_text("{}")
    evaluations = (
        {"model": run / "hf"},
        {"model": None, "run": run, "samples": 2},
        {"model": run / "hf", "temperature": 0.5},
        {"model": run / "hf"},
    )
    for changes in evaluations:
        assert typed(output=None, greedy=False, prompts=2, max_completion_length=1, **changes)[0] == 0
    kept = {file.name: file for file in (run / "evaluations").iterdir()}
    assert sorted(kept) == [
        *("task_n2.json", "task_n2.parquet", "task_n3.json", "task_n3.parquet"),
        *("task_n3_2.json", "task_n3_2.parquet"),
    ]
    temperatures = [
        json.loads(kept[name].read_text())["temperature"] for name in ("task_n3.json", "task_n3_2.json")
    ]
    assert temperatures == [1.5, 0.5]


REFUSED = [
    ({"task": "gsm8"}, r"task = gsm8: no such task \(did you mean 'gsm8k'"),
    ({"task": "nowhere.yaml"}, r"nowhere.yaml: not found"),
    ({"rewards": "model:nowhere"}, r"rewards: model 'nowhere': no such folder"),
    ({"rewards": "gsm8q", "model": "nowhere"}, r"rewards: nothing is called 'gsm8q' \(did you mean 'gsm8k'"),
    ({"data": None}, r"neither a task .* nor a file .*; --data PATH says where the rows of task.yaml lie"),
    ({"task": "aime24", "samples": 8}, r"published figures of aime24 average over 64"),
    ({"pass_k": 4}, r"pass_k = \[4\]: pass@4 needs 4 samples of each prompt, and samples is 3"),
    ({"temperature": 0, "samples": 3}, r"samples = 3: greedy samples are all the same"),
    (
        {"task": "math500", "max_completion_length": 8, "max_prompt_length": 64},
        r"row 1: no column .problem. among",
    ),
    ({"run": "nowhere"}, r"run = nowhere: no run there"),
    ({"compare": "rows.jsonl"}, r"compare = rows.jsonl: "),
    ({"output": "x.parquet"}, r"output = x.parquet: the completions go there; name the JSON file, x.json"),
    ({"max_completion_length": 9999}, r"has 1024 positions"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_an_invalid_evaluation_fails_before_weights_are_read(changes, said, typed, place, monkeypatch):
    monkeypatch.setattr(hf, "load_params", lambda *_: pytest.fail("weights were read"))
    code, out, error = typed(**changes)
    assert code == 2
    assert re.search(said, error), error
    assert len(error.splitlines()) <= 2
    assert out == ""
    assert {path.name for path in place.iterdir()} <= {
        "rows.jsonl",
        "task.yaml",
        "mine.py",
        "__pycache__",
        "out",
    }
    assert not list(place.glob("out/*"))


def test_every_task_is_listed(capsys):
    assert main(["eval", "--list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"aime24: .*\n    rows .*\n    samples  64 \(published\)\n    answer   number", out)
