"""`grpo-jax data ...`, as a person types it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.commands import data, data_grade
from grpo_jax.data.files import read_file
from grpo_jax.data.layouts import arrange

ROWS = [
    {
        "question": "Ann has 6 eggs and buys 1. How many has she?",
        "answer": "6+1=<<6+1=7>>7\n#### 7",
        "level": 1,
    },
    {"question": "Prove that 7 is a prime number.", "answer": "It is.\n#### 7", "level": 2},
    {"question": "What is the area of the square in the figure below?", "answer": "#### 7", "level": 1},
    {"question": "See https://a.com: what is 3 + 4?", "answer": "#### 7", "level": 3},
]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", ROWS)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(name):
    with open(name) as file:
        return json.load(file) if name.endswith(".json") else [json.loads(line) for line in file]


def contents(folder):
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def do(line):
    assert main(["data", *line.split()]) == 0


def test_clean_leaves_rows_dropped_rows_and_a_report(workspace, capsys):
    do("clean rows.jsonl out.jsonl")
    kept, dropped = read("out.jsonl"), read("out.jsonl.dropped.jsonl")
    assert kept == [ROWS[0], {**ROWS[3], "question": "See : what is 3 + 4?"}]
    assert [(d["row"], d["reason"], d["columns"]) for d in dropped] == [
        (2, "proof", ROWS[1]),
        (3, "image", ROWS[2]),
    ]
    report = read("out.jsonl.report.json")
    assert (report["read"], report["kept"], report["dropped"]) == (4, 2, 2)
    assert report["reasons"] == {"proof": 1, "image": 1}
    assert report["settings"]["purpose"] == "rl"
    out = capsys.readouterr().out
    for words in ("dropped: proof", "stripped: link", "report: out.jsonl.report.json"):
        assert words in out


def test_a_cleaned_file_can_be_trained_on(workspace):
    """The layout is recognised again, and columns of the data's own are there."""
    do("clean rows.jsonl out.parquet")
    from etils import epath

    rows = read_file(epath.Path("out.parquet"))
    assert [row["level"] for row in rows] == [1, 3]
    assert [row["answer"] for row in arrange(rows)] == ["7", "7"]


def test_reasons_can_be_allowed(workspace):
    do("clean rows.jsonl out.jsonl --allow proof,image")
    assert len(read("out.jsonl")) == 4


def test_decontaminate_reports_and_drops_when_asked(workspace, capsys):
    leak = "Ann has 6 eggs and buys 1 -- how many has she now?"
    write("test.jsonl", [{"prompt": leak}])
    do("decontaminate rows.jsonl out.jsonl --against test.jsonl")
    assert [row["overlap"] for row in read("out.jsonl")] == [4 / 5, 0, 0, 0]
    assert read("out.jsonl.report.json")["flagged"][0]["example"] == "ann has 6 eggs and buys 1 how"
    assert "4 of 5 n-grams" in capsys.readouterr().out
    do("decontaminate rows.jsonl out.jsonl --against test.jsonl --drop --overwrite")
    assert [row["row"] for row in read("out.jsonl.dropped.jsonl")] == [1]


LEAK = "What is the least prime number that divides seven hundred and forty-one?"


def test_rows_of_another_layout_are_compared_or_reported_as_unreadable(workspace, capsys):
    rows = [{"question": LEAK, "answer": "#### 3"}, {"problem": f"Say: {LEAK}"}, {"text": LEAK}]
    write("train.jsonl", rows)
    short = {"question": "What is 3 + 4?", "answer": "#### 7"}
    write("test.jsonl", [short, {"problem": LEAK}, {"text": LEAK}])
    do("decontaminate train.jsonl out.jsonl --against test.jsonl")
    assert [row["overlap"] for row in read("out.jsonl")] == [1, 1, 0]
    report = read("out.jsonl.report.json")
    assert (report["leaks"], report["held_out"], report["unreadable"]) == (2, 2, [3])
    assert report["held_out_unreadable"] == [{"against": "test.jsonl", "against_row": 3}]
    out = capsys.readouterr().out
    for words in ("│   unreadable     │ 1    │ test.jsonl, row 3", "│ found only as the same text"):
        assert words in out


def test_rows_that_a_named_layout_cannot_read_are_reported(workspace):
    write("train.jsonl", [{"problem": "Say a.", "answer": "7"}, {"prompt": LEAK}])
    write("test.jsonl", [{"prompt": LEAK}])
    do("decontaminate train.jsonl out.jsonl --against test.jsonl --layout problem_answer")
    assert read("out.jsonl.report.json")["unreadable"] == [2]


def test_answers_of_equal_value_neither_conflict_nor_differ(workspace):
    rows = [
        {"problem": "What is half of 1?", "answer": answer} for answer in ("0.5", r"$\frac{1}{2}$", "1/2")
    ]
    write("rows.jsonl", rows)
    do("clean rows.jsonl out.jsonl")
    assert read("out.jsonl") == rows
    do("dedup rows.jsonl one.jsonl")
    assert read("one.jsonl") == rows[:1]


def test_dedup_drops_copies(workspace):
    write("rows.jsonl", [*ROWS, ROWS[0]])
    do("dedup rows.jsonl out.jsonl")
    assert read("out.jsonl") == ROWS
    assert read("out.jsonl.dropped.jsonl")[0]["found"] == "row 1, likeness 1.000"


def test_filter_keeps_rows_strictly_between_the_bounds(workspace):
    write("rows.jsonl", [{**row, "pass_rate": i / 3} for i, row in enumerate(ROWS)])
    do("filter rows.jsonl out.jsonl --low 0 --high 1")
    assert [row["level"] for row in read("out.jsonl")] == [2, 1]
    do("filter rows.jsonl easy.jsonl --column level --low 2")
    assert [row["level"] for row in read("easy.jsonl")] == [3]


def test_rows_limits_how_many_rows_are_read(workspace):
    do("clean rows.jsonl out.jsonl --rows 2")
    assert read("out.jsonl.report.json")["read"] == 2


def test_show_prints_the_layout_and_the_text_that_the_model_reads(workspace, capsys):
    do("show rows.jsonl --show 1")
    out = capsys.readouterr().out
    for words in (
        "rows.jsonl: 4 rows",
        "layout: gsm8k",
        "[user] Ann has 6 eggs",
        "<think>\n6+1=7\n</think>\n\n#### 7",
    ):
        assert words in out


def test_show_uses_the_models_template(workspace, tiny_model, capsys):
    do(f"show rows.jsonl --show 1 --model {tiny_model} --prefill <think> --system_prompt Count.")
    out = capsys.readouterr().out
    assert "<|im_start|>system\nCount.<|im_end|>" in out
    assert "<|im_start|>assistant\n<think>" in out
    assert "<|im_start|>user\nAnn has 6 eggs" in out
    assert "length in tokens" in out


def test_data_verbs_without_a_model_do_not_load_jax(workspace):
    program = """
import sys
from grpo_jax.cli import main
for line in ("show rows.jsonl", "clean rows.jsonl a.jsonl", "filter rows.jsonl b.jsonl --column level --low 1"):
    main(["data", *line.split()])
print([m for m in ("jax", "flax", "transformers", "datasets", "torch") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


BAD = [
    ("dedup rows.jsonl out.jsonl --rows -1", "rows = '-1': must be at least 0"),
    (
        "decontaminate rows.jsonl out.jsonl --against other.jsonl",
        "against = other.jsonl: dataset: no column 'prompt'",
    ),
    ("show nowhere.jsonl", "nowhere.jsonl': no such file or folder"),
    ("show rows.jsonl --layout gsm8", "layout = 'gsm8': no such layout (did you mean 'gsm8k'?)"),
    ("clean rows.jsonl out.jsonl --layout limo", "layout = 'limo': the data have no column 'solution'"),
    ("show rows.jsonl --prefill <think>", "prefill = '<think>': it is for a chat template; give --model"),
    ("clean rows.jsonl out.csv", "out.csv: its name must end in .jsonl or .parquet"),
    ("clean rows.jsonl rows.jsonl --overwrite", "out = rows.jsonl: rows.jsonl is read here, as data"),
    ("clean x.jsonl.dropped.jsonl x.jsonl --overwrite", "x.jsonl.dropped.jsonl is read here, as data"),
    ("clean folder folder/train.jsonl --overwrite", "folder/train.jsonl is read here, as data; give another"),
    ("clean clone clone/data/train-0.jsonl --overwrite", "clone/data/train-0.jsonl is read here, as data"),
    (
        "decontaminate rows.jsonl x.jsonl --against folder,x.jsonl.dropped.jsonl --overwrite",
        "out = x.jsonl: x.jsonl.dropped.jsonl is read here, as against; give another file",
    ),
    (
        "grade y.jsonl.partial.json y.jsonl --model m --overwrite",
        "y.jsonl.partial.json is read here, as data",
    ),
    (
        "decontaminate blank.jsonl out.jsonl --against rows.jsonl",
        "data = blank.jsonl: the column overlap would be replaced; rename it, or give all held-out sets at once",
    ),
    (
        "decontaminate rows.jsonl out.jsonl --against blank.jsonl",
        "against = blank.jsonl: none of its 2 rows asks anything that can be read",
    ),
    (
        "grade graded.jsonl out.jsonl --model m",
        "data = graded.jsonl: the column pass_rate and difficulty would be replaced; rename it, or grade",
    ),
    ("filter half-a.jsonl out.jsonl --low 0", "half-a.jsonl:1: holds \\ud800, half of a character"),
    ("show half-a.jsonl", "half-a.jsonl:1: holds \\ud800, half of a character"),
    (f"show countdown:max={'9' * 400}", "must be one whole number, at least 1 and at most 1,000,000,000"),
    (f"clean countdown:max={'9' * 5000} out.jsonl", "must be one whole number, at least 1 and at most"),
    ("clean rows.jsonl there.jsonl", "there.jsonl: is there already; give another file, or --overwrite"),
    ("clean rows.jsonl half.jsonl", "half.jsonl.report.json: is there already"),
    ("clean rows.jsonl", "OUT"),
    ("clean rows.jsonl out.jsonl --allow images", "allow = 'images': no such reason (did you mean 'image'?)"),
    ("clean rows.jsonl out.jsonl --purpose RL", "purpose = 'RL': must be 'rl' or 'sft'"),
    ("filter rows.jsonl out.jsonl", "low, high: give one of them"),
    ("filter rows.jsonl out.jsonl --low 0.8 --high 0.2", "low = 0.8: must be below high = 0.2"),
    ("filter rows.jsonl out.jsonl --low 0", "column = 'pass_rate': the data have no such column"),
    ("decontaminate rows.jsonl out.jsonl", "against: must be given"),
    ("decontaminate rows.jsonl out.jsonl --against nowhere.jsonl", "nowhere.jsonl': no such file"),
    ("dedup rows.jsonl out.jsonl --threshold 2", "threshold = '2': must be at most 1"),
    ("grade rows.jsonl out.jsonl", "model: must be given"),
    ("grade rows.jsonl out.jsonl --model m --easy 0.2", "hard = 0.25: must be below easy = 0.2"),
    ("grade rows.jsonl out.jsonl --model m --temperature 0", "samples = 8: greedy samples are all the same"),
    ("clean rows.jsonl out.jsonl --purpos rl", "--purpos: no such setting (did you mean 'purpose'?)"),
    ("clen rows.jsonl", "clen"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_bad_input_is_refused_in_one_line_and_changes_no_file(line, words, workspace, capsys):
    write("there.jsonl", [])
    write("half.jsonl.report.json", [])
    write("other.jsonl", [{"text": "Hi"}])
    write("blank.jsonl", [{"prompt": "?", "overlap": 7}, {"prompt": 3}])
    write("graded.jsonl", [{"prompt": "a"}, {"prompt": "b", "difficulty": "olympiad", "pass_rate": "mine"}])
    write("half-a.jsonl", [{"prompt": "\ud800", "pass_rate": 0}])
    for name in (
        "x.jsonl.dropped.jsonl",
        "folder/train.jsonl",
        "folder/test.jsonl",
        "clone/data/train-0.jsonl",
    ):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        write(name, ROWS)
    (workspace / "y.jsonl.partial.json").write_text(json.dumps(ROWS))
    before = contents(workspace)
    assert main(["data", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert words in err
    assert contents(workspace) == before


def test_values_that_json_cannot_hold_are_refused_and_parquet_takes_them(workspace, capsys):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "x", "image": b"\xff"}]), "rows.parquet"
    )
    assert main(["data", "dedup", "rows.parquet", "out.jsonl"]) == 2
    assert "out.jsonl: cannot hold these rows: a value of type bytes" in capsys.readouterr().err
    do("dedup rows.parquet out.parquet")


def test_dropped_rows_with_such_values_are_written_as_text(workspace):
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    odd = {
        "price": decimal.Decimal("1.50"),
        "day": datetime.date(2020, 1, 2),
        "took": datetime.timedelta(seconds=1),
    }
    rows = [{"prompt": "x", "pass_rate": rate, **odd} for rate in (0.0, 0.5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    do("filter rows.parquet out.parquet --low 0")
    assert pyarrow.parquet.read_table("out.parquet").to_pylist() == rows[1:]
    (dropped,) = read("out.parquet.dropped.jsonl")
    assert dropped["columns"] == {**rows[0], "price": "1.50", "day": "2020-01-02", "took": "0:00:01"}


def test_an_interrupted_overwrite_leaves_no_old_rows_beside_the_new_report(workspace, monkeypatch):
    do("clean rows.jsonl out.jsonl")
    write_one = data.write_atomically

    def dies(path, content):
        if path == "out.jsonl":
            raise KeyboardInterrupt
        write_one(path, content)

    monkeypatch.setattr(data, "write_atomically", dies)
    assert main(["data", "clean", "rows.jsonl", "out.jsonl", "--allow", "proof", "--overwrite"]) == 130
    assert read("out.jsonl.report.json")["kept"] == 3
    assert not (workspace / "out.jsonl").exists()


def test_a_file_in_the_folder_that_is_read_can_be_overwritten(workspace):
    (workspace / "folder").mkdir()
    write("folder/train.jsonl", ROWS)
    for _ in range(2):
        do("clean folder folder/clean.jsonl --overwrite")
    assert len(read("folder/clean.jsonl")) == 2


# ---- grade ----


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Seven problems, the last of which is too long."""
    folder = tmp_path_factory.mktemp("problems")
    rows = [{"prompt": f"{i}: say a", "letter": "aeiou"[i % 5], "level": i} for i in range(6)]
    with open(folder / "train.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*rows, {"prompt": "long " * 20, "letter": "a"}])
    return folder


@pytest.fixture
def grade(workspace, problems, tiny_model, tiny_settings):
    """`grade(out, **settings)`: the exit code of grading the problems with the tiny model."""

    def run(out, **settings):
        given = {
            "model": tiny_model,
            "rewards": tiny_settings["rewards"],
            "reward_workers": 1,
            "samples": 4,
            "prompts_per_step": 2,
            "max_prompt_length": 32,
            "max_completion_length": 8,
            "mesh": "data=1",
        } | settings
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return main(["data", "grade", str(problems), out, *words])

    return run


def test_an_interrupted_grading_continues_to_the_same_rates(grade, workspace, monkeypatch):
    assert grade("whole.jsonl") == 0
    whole = read("whole.jsonl")
    assert [row["level"] for row in whole] == list(range(6))
    rates = [row["pass_rate"] for row in whole]
    assert 0 < np.mean(rates) < 1, "rates that are all the same would prove nothing"
    assert [d["reason"] for d in read("whole.jsonl.dropped.jsonl")] == ["too_long"]
    report = read("whole.jsonl.report.json")
    assert sum(report["levels"].values()) == 6
    assert report["mean_pass_rate"] == pytest.approx(np.mean(rates))

    batches = []
    add = data_grade.SavedGrades.add

    def dies(grades, numbers, successes):
        if batches:
            raise KeyboardInterrupt
        batches.append(numbers)
        add(grades, numbers, successes)

    monkeypatch.setattr(data_grade.SavedGrades, "add", dies)
    assert grade("again.jsonl") == 130
    assert len(read("again.jsonl.partial.json")["judged"]) == 2
    assert grade("again.jsonl", seed=1) == 2, "rates of two seeds must not be mixed in one file"

    monkeypatch.setattr(
        data_grade.SavedGrades, "add", lambda grades, *rest: batches.append(rest[0]) or add(grades, *rest)
    )
    # other batches, the same rates
    assert grade("again.jsonl", prompts_per_step=1) == 0
    assert batches == [[0, 1], [2], [3], [4], [5]], "rows that have a rate are not sampled again"
    assert read("again.jsonl") == whole
    assert not (workspace / "again.jsonl.partial.json").exists()


def test_a_grading_is_not_continued_with_other_weights(
    grade, workspace, tiny_model, reward_model, monkeypatch, capsys
):
    """Pass rates of two models must not be mixed in one file."""
    own = {
        name: shutil.copytree(source, workspace / name)
        for name, source in (("m", tiny_model), ("judge", reward_model))
    }
    given = {"model": own["m"], "rewards": f"model:{own['judge']}"}
    monkeypatch.setattr(data_grade, "_sample", lambda *_: None)  # nothing is known yet when it is interrupted
    monkeypatch.setattr(data_grade.difficulty, "graded", interrupted)
    assert grade("out.jsonl", **given) == grade("out.jsonl", **given) == 130
    for name, changed in (("judge", "reward model judge"), ("m", "weights")):
        weights = next(own[name].glob("*.safetensors"))
        before = weights.read_bytes()
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        capsys.readouterr()
        assert grade("out.jsonl", **given) == 2
        assert f"an interrupted grading with another {changed}; repeat" in capsys.readouterr().err
        weights.write_bytes(before)


def interrupted(*_):
    raise KeyboardInterrupt
