"""Small sums: right on every line, no held-out one among those trained on, longer where they are harder."""

import re

import pytest

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.tiny_math import split_of, worked_examples
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.accuracy import reasoning_accuracy_reward
from grpo_jax.rewards.functions.format import think_answer_format
from grpo_jax.rewards.functions.gsm8k import gsm8k, gsm8k_strict

LINE = re.compile(r"(\d+)([+-]\d+)=(\d+)")


def scored(reward, form, patience=1.0, care=1.0, column="answer"):
    """Means over sums of two to four signs."""
    options = f"levels=2-4,form={form}"
    rows = load_rows(f"tiny_math:{options},size=60", "train", seed=0)
    completions = [row["completion"] for row in worked_examples(options, 0, 60, patience, care)]
    columns = {column: [row["answer"] for row in rows]}
    return sum(reward(prompts=[row["prompt"] for row in rows], completions=completions, **columns)) / 60


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_of_a_row_is_the_value_of_its_prompt(split):
    for row in load_rows("tiny_math:levels=1-6,size=200", split):
        assert eval(row["prompt"].removesuffix("=")) == int(row["answer"]) == sum(row["terms"])
        assert row["level"] == row["size"] == len(re.findall(r"[+-]", row["prompt"]))
        assert split_of(row["terms"]) == split


def test_no_held_out_sum_is_trained_on():
    held_out = {row["prompt"] for row in load_rows("tiny_math", "test", seed=0)}
    rows = load_rows("tiny_math", "train", seed=1)
    assert len(held_out) > 300
    assert not held_out & {row["prompt"] for row in (*rows, *worked_examples("", 0, 2000))}


def test_examples_add_every_term_in_a_line_of_its_own():
    rows = load_rows("tiny_math:size=200", "train", seed=0)
    for row, example in zip(rows, worked_examples("", 0, 200)):
        lines = LINE.findall(example["completion"])
        assert [int(term) for _, term, _ in lines] == row["terms"][1:]
        assert all(int(before) + int(term) == int(after) for before, term, after in lines)
        assert [before for before, _, _ in lines[1:]] == [after for _, _, after in lines[:-1]]


@pytest.mark.parametrize(("form", "reward"), [("boxed", gsm8k), ("answer", gsm8k), ("hash", gsm8k_strict)])
def test_patient_examples_score_and_impatient_ones_rarely_do(form, reward):
    assert scored(reward, form) == 1.0
    assert scored(reward, form, patience=0.0) < 0.2


def test_every_form_is_known_to_its_rewards():
    assert scored(reasoning_accuracy_reward, "boxed", column="solution") == 1.0
    assert scored(reasoning_accuracy_reward, "boxed", care=0.0, column="solution") == 0.0
    assert scored(think_answer_format, "answer") == 1.0
    assert scored(think_answer_format, "answer", care=0.0) == 0.0
    assert scored(gsm8k_strict, "hash", care=0.0) == 0.0


def test_the_length_of_examples_grows_with_the_level():
    longest = [
        max(len(row["completion"]) for row in worked_examples(f"levels={level}", 0, 50))
        for level in (1, 3, 6)
    ]
    assert longest[0] * 1.5 < longest[1] < longest[2] / 1.5


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("form=box", "form=box.*boxed"),
        ("max=500", "max=500: it has symbols up to 99"),
        ("level=3", "unknown option 'level'.*levels"),
        ("max=1,levels=1", "too few problems"),
    ],
)
def test_impossible_options_are_refused(options, why):
    with pytest.raises(UserError, match=why):
        load_rows(f"tiny_math:{options}", "test")
