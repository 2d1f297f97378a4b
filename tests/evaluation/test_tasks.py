"""Task files: the built-in ones, and the messages for invalid ones."""

import pytest

from grpo_jax.config import EvalConfig
from grpo_jax.data.sources import TASKS, load_rows
from grpo_jax.data.tasks.tiny_countdown import TRACES
from grpo_jax.errors import UserError
from grpo_jax.evaluation import tasks
from grpo_jax.evaluation.setup import setup_of
from grpo_jax.evaluation.tasks import ASKED, load_task

PUBLISHED = {"aime24": 64, "aime25": 64, "math500": 4, "gpqa": 8, "livecodebench": 16}

# As the public sets have their columns.
ROWS = {
    "aime24": {"ID": "2024-I-1", "Problem": "Find $x$.", "Solution": "So 204.", "Answer": 204},
    "aime25": {"problem": "Find $x$.", "answer": "70", "id": "0"},
    "arithmetic": None,
    "countdown": {"nums": [3, 5, 9], "target": 7},
    "gpqa": {
        "Question": "Which one?",
        "Correct Answer": "gold",
        **{f"Incorrect Answer {i}": f"lead {i}" for i in (1, 2, 3)},
    },
    "gsm8k": {"question": "How many?", "answer": "9 * 2 = 18\n#### 18"},
    "knights_and_knaves": {
        "quiz": "Zoey says..",
        "names": ["Zoey"],
        "solution_text_format": "(1) Zoey is a knight",
        "prompt": "<|im_start|>",
    },
    "livecodebench": {"question_content": "Add.", "starter_code": "", "public_test_cases": "[]"},
    "math500": {"problem": "Find $x$.", "solution": "..", "answer": r"\frac{1}{2}", "level": 3},
    "tiny_countdown": None,
    "tiny_knights": None,
    "tiny_math": None,
}


def test_every_task_has_an_example_row_in_this_file():
    assert set(ROWS) == set(tasks.names())


@pytest.mark.parametrize("name", ROWS)
def test_every_task_makes_a_prompt_of_its_rows(name):
    task = load_task(name)
    rows = [ROWS[name]] if ROWS[name] else load_rows(task.dataset, task.split)[:1]
    (row,) = task.rows(rows)
    asked = row[ASKED]
    text = asked if isinstance(asked, str) else asked[0]["content"]
    assert text.strip()
    assert "{" not in text.replace(r"\boxed{}", "")
    assert task.usual_samples == PUBLISHED.get(name, task.samples)


@pytest.mark.parametrize("name", [name for name in ROWS if load_task(name).reward is None])
def test_every_gold_answer_of_a_task_can_be_read(name):
    task = load_task(name)
    rows = [ROWS[name]] if ROWS[name] else load_rows(task.dataset, task.split)[:1]
    gold = task.answer_rewards()[0].kind.gold(task.rows(rows)[0]["answer"])
    assert gold.key


def test_every_generated_data_set_but_the_worked_examples_is_a_task():
    """All but worked examples, which are for `sft`."""
    assert set(TASKS) - set(tasks.names()) == {TRACES}


def test_the_order_of_options_does_not_reveal_the_right_one():
    """The right one comes at each place about equally often, and the order depends on the question alone."""
    task = load_task("gpqa")
    rows = [ROWS["gpqa"] | {"Correct Answer": f"gold {i}"} for i in range(200)]
    made = task.rows(rows)
    letters = [row["answer"] for row in made]
    assert all(30 <= letters.count(letter) <= 70 for letter in "ABCD")
    for row, source in zip(made, rows):
        assert f"({row['answer']}) {source['Correct Answer']}" in row[ASKED][0]["content"]
    assert task.rows(rows[::-1]) == made[::-1]


GOOD = {
    "about": "mine",
    "source": "me",
    "dataset": "rows.jsonl",
    "prompt": "{q}!",
    "answer": "number",
    "place": "tag",
    "samples": 2,
}
BAD = [
    ({"samples": None}, "samples: must be given, or published_samples"),
    ({"published_samples": 3}, "samples = 2: published_samples is 3 already; keep one"),
    ({"place": "fence"}, "place = fence: an answer that is number stands in one of tag, box, hash"),
    ({"answer": "numbr"}, r"FILE:5: answer = 'numbr': .* \(did you mean 'number'"),
    ({"smples": 3}, r"FILE:8: smples: no such setting \(did you mean 'samples'"),
    ({"about": None}, "about"),
    ({"prompt": r"{q} Use \boxed{}."}, r"prompt: \{\} is no column; braces .* written twice, \{\{ and \}\}"),
    ({"prompt": "{q:d}"}, r"prompt: \{q\} is no column"),
    ({"prompt": "{q"}, r"prompt = '\{q': a brace has no other"),
    ({"columns": {"answer": 5}}, "columns: answer = 5: must be the name of a column"),
    ({"columns": {"answer": []}}, r"columns: answer = \[\]: must be the name of a column"),
]


def written(folder, **changes):
    import yaml

    file = folder / "mine.yaml"
    values = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(file)


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_an_invalid_task_file_is_refused(changes, said, tmp_path):
    file = written(tmp_path, **changes)
    with pytest.raises(UserError, match=said.replace("FILE", file)):
        load_task(file)


def test_a_missing_column_is_named(tmp_path):
    task = load_task(written(tmp_path))
    assert task.rows([{"q": "why"}])[0][ASKED] == [{"role": "user", "content": "why!"}]
    with pytest.raises(UserError, match=r"dataset, row 2: no column 'q' .* among qu, answer; .*the prompt"):
        task.rows([{"q": 1}, {"qu": 2, "answer": 3}])
    with pytest.raises(UserError, match=r"no column 'problem' or 'Problem' .* among x; .*columns"):
        load_task("aime24").rows([{"x": 1}])


def test_a_missing_task_file_is_refused():
    with pytest.raises(UserError, match=r"nowhere.yaml: not found"):
        load_task("nowhere.yaml")


# ---- with the settings of eval ----


def setup(**settings):
    return setup_of(EvalConfig(model="m", **settings))


def test_user_settings_override_the_task():
    config = setup(task="math500", top_p=0.5, prompts_per_step=3).config
    assert (config.samples, config.temperature, config.top_p) == (4, 0.6, 0.5)
    assert (config.greedy, config.max_completion_length) == (False, 32768)


def test_another_n_than_the_published_one_must_be_requested():
    with pytest.raises(UserError, match=r"samples = 8: published figures of aime24 average over 64"):
        setup(task="aime24", samples=8)
    assert setup(task="aime24", samples=8, other_samples=True).config.samples == 8
    assert setup(task="aime24", samples=64).config.samples == 64
    assert setup(task="gsm8k", samples=7).config.samples == 7, "nobody has published an N"


def test_pass_k_above_the_samples_is_refused():
    with pytest.raises(UserError, match=r"pass_k = \[1, 16\]: pass@16 needs 16 samples .* samples is 4"):
        setup(task="math500", pass_k=[1, 16])
    assert setup(task="math500", pass_k="4,2").ks == [2, 4]
    assert setup(task="math500").ks == [1, 2, 4]


def test_several_greedy_samples_are_refused():
    with pytest.raises(UserError, match=r"samples = 4: greedy samples are all the same"):
        setup(task="gsm8k", samples=4, temperature=0)


@pytest.mark.parametrize("name", ["gsm8", "GSM8K"])
def test_a_misspelt_task_gets_a_suggestion(name):
    with pytest.raises(
        UserError, match=rf"task = {name}: no such task \(did you mean 'gsm8k'.*tasks are aime24"
    ):
        setup(task=name)


def test_data_needs_a_task_with_rows(tmp_path):
    assert setup(task="gsm8k", data="/x/gsm8k").dataset == "/x/gsm8k"
    assert setup(task="countdown:numbers=3").dataset == "countdown:numbers=3"
    assert setup(task="owner/rows").task is None
    rows = setup(task=f"{TRACES}:numbers=3", rewards=["format"])
    assert (rows.task, rows.dataset) == (None, f"{TRACES}:numbers=3"), "generated rows, with a reward"
    with pytest.raises(UserError, match=r"data = x: a/b is no task"):
        setup(task="a/b", data="x")
    with pytest.raises(UserError, match=r"--data PATH says where the rows of gsm8k lie"):
        setup(task="gsm8k").rows()


def test_programs_run_only_when_a_judge_is_chosen():
    with pytest.raises(UserError, match=r"does nothing unless asked: .*; write that as --judge code:\.\.\.$"):
        setup(task="livecodebench")
    asked = setup(task="livecodebench", judge="code:sandbox=local")
    assert [grader.judge for grader in asked.rewards] == ["code:sandbox=local"] * 2
    with pytest.raises(UserError, match=r"rewards: nothing is called 'cod'"):
        setup(task="livecodebench", judge="cod")
    with pytest.raises(
        UserError, match=r"judge = gsm8k: a/b is no task with answers to judge; write --rewards"
    ):
        setup(task="a/b", judge="gsm8k")


def test_a_users_judge_is_used():
    assert setup(task="gsm8k", judge="boxed_math").task.reward == "boxed_math"
    assert setup(task="gsm8k").task.reward is None
