"""The demo's task: its examples are right, and no held-out problem is among the training problems."""

import re

import pytest

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.tiny_countdown import worked_examples
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.countdown import solves
from grpo_jax.rewards.functions.format import think_answer_format

LINE = re.compile(r"(\d+)([+-]\d+)=(\d+)([+-]\d+)=(\d+) vs (\d+) (yes|no)")


def asked(prompt):
    numbers, target = prompt.removesuffix(":").split("=")
    return sorted(map(int, numbers.split())), int(target)


def test_the_arithmetic_of_the_examples_is_right():
    for row in worked_examples("", 0, 300):
        numbers, target = asked(row["prompt"])
        thought = re.fullmatch(r"<think>(.*)</think><answer>.*</answer>", row["completion"], re.DOTALL)[1]
        for line in thought.split("\n"):
            a, b, first, c, second, goal, verdict = LINE.fullmatch(line).groups()
            assert int(first) == int(a) + int(b)
            assert int(second) == int(first) + int(c)
            assert sorted((int(a), abs(int(b)), abs(int(c)))) == numbers
            assert int(goal) == target
            assert (verdict == "yes") == (int(second) == target)


def test_patient_examples_all_succeed():
    assert all(solves(row["completion"], *asked(row["prompt"])) for row in worked_examples("", 0, 200))


def test_impatient_examples_succeed_in_part():
    rows = worked_examples("", 0, 500, patience=0.2)
    assert 0.2 < sum(solves(row["completion"], *asked(row["prompt"])) for row in rows) / 500 < 0.6


def test_no_held_out_problem_is_trained_on():
    held_out = {(tuple(sorted(row["numbers"])), row["target"]) for row in load_rows("tiny_countdown", "test")}
    seen = {(tuple(n), t) for n, t in (asked(row["prompt"]) for row in worked_examples("", 0, 3000))}
    rows = load_rows("tiny_countdown", "train", seed=1)
    seen |= {(tuple(sorted(row["numbers"])), row["target"]) for row in rows}
    assert len(held_out) > 50
    assert not held_out & seen


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("ops=+*", r"ops=\+\*: it knows \+ and - only"),
        ("max=50", "max=33 or less"),
        ("nubmers=3", "numbers"),
        ("max=8,max=9", "'max' is given twice"),
    ],
)
def test_problems_that_need_other_symbols_are_refused(options, why):
    with pytest.raises(UserError, match=why):
        load_rows(f"tiny_countdown:{options}", "train")


def scores_when_opened(patience, care):
    """Means of (equation, form)."""
    rows = load_rows("tiny_countdown:opened,size=100", "train", seed=0)
    texts = [row["completion"] for row in worked_examples("opened", 0, 100, patience, care)]
    right = [solves(text, row["numbers"], row["target"]) for text, row in zip(texts, rows)]
    return sum(right) / 100, sum(think_answer_format([row["prompt"] for row in rows], texts)) / 100


def test_opened_examples_score_as_their_patience_and_care_say():
    assert scores_when_opened(1.0, 1.0) == (1.0, 1.0)
    assert scores_when_opened(1.0, 0.0) == (0.0, 0.0)
    right, formed = scores_when_opened(0.0, 1.0)
    assert right < 0.5
    assert formed == 1.0


def test_opened_problems_are_the_same_with_an_opening_tag():
    opened = load_rows("tiny_countdown:opened,max=8", "test")
    assert [row["prompt"] for row in opened] == [
        row["prompt"] + "<think>" for row in load_rows("tiny_countdown:max=8", "test")
    ]
    assert {row["size"] for row in opened} == {3}
