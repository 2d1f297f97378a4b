"""Small puzzles: one solution each, no held-out one among those trained on, and examples that reason rightly."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.knights import holds, solve, split_of
from grpo_jax.data.tasks.tiny_knights import NAMES, worked_examples
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.knights import logic_rl

FACT = re.compile(r"(\w+) is a (knight|knave)")
CHECK = re.compile(r"\n(\w+) says: (true|false)")


def facts(text):
    return [(kind, NAMES.index(name)) for name, kind in FACT.findall(text)]


def statements_of(prompt):
    said = []
    for line in prompt.split("\n")[1:-1]:
        words = line.partition("says: ")[2]
        parts = facts(words)
        said.append(parts[0] if len(parts) == 1 else ("and" if " and " in words else "or", *parts))
    return said


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_a_puzzle_has_exactly_the_solution_that_it_gives(seed, split, people):
    for row in load_rows(f"tiny_knights:people={people},size=3", split, seed=seed):
        statements = statements_of(row["prompt"])
        assert solve(statements) == [tuple(row["solution"])]
        assert row["size"] == people == len(statements)
        assert split_of(statements) == split
        assert [kind == "knight" for kind, _ in facts(row["answer"])] == row["solution"]


def test_no_held_out_puzzle_is_trained_on():
    held_out = {row["prompt"] for row in load_rows("tiny_knights", "test")}
    rows = load_rows("tiny_knights:people=2-4", "train", seed=1)
    seen = {row["prompt"] for row in (*rows, *worked_examples("people=2-4", 0, 2000))}
    assert len(held_out) > 300
    assert not held_out & seen


def test_the_reasoning_of_the_examples_is_right():
    for row in worked_examples("people=2-4", 0, 200):
        statements = statements_of(row["prompt"])
        cases = re.split(r"\nCase \d+:", row["completion"].partition("</think>")[0])[1:]
        for case in cases:
            who = [kind == "knight" for kind, _ in facts(case)]
            truths = [truth == "true" for _, truth in CHECK.findall(case)]
            assert truths == [holds(said, who) for said in statements[: len(truths)]]
            assert [name for name, _ in CHECK.findall(case)] == [*NAMES[: len(truths)]]
            rightly = [truth == knight for truth, knight in zip(truths, who)]
            assert all(rightly[:-1])
            assert case.endswith(" yes" if rightly[-1] else " no")
            assert len(truths) == len(who) or not rightly[-1]
        assert cases[-1].endswith(" yes")


@pytest.mark.parametrize(
    ("patience", "care", "scores"), [(1.0, 1.0, {3.0}), (0.0, 1.0, {3.0, -0.5}), (1.0, 0.0, {-3.0})]
)
def test_examples_score_as_their_patience_and_care_say(patience, care, scores):
    rows = load_rows("tiny_knights:size=100", "train", seed=0)
    examples = worked_examples("", 0, 100, patience, care)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in examples]
    answers = [row["answer"] for row in rows]
    completions = [row["completion"] for row in examples]
    assert {*logic_rl([row["prompt"] for row in rows], completions, answer=answers)} == scores


def test_the_length_of_examples_grows_with_the_people():
    lengths = []
    for people in (2, 3, 4):
        rows = worked_examples(f"people={people}", 0, 200)
        lengths.append(sum(len(row["completion"]) for row in rows) / len(rows))
    assert lengths[0] * 2 < lengths[1] < lengths[2] / 1.5


@pytest.mark.parametrize(("options", "why"), [("people=5", r"must lie in 2\.\.4"), ("poeple=3", "people")])
def test_unknown_options_and_values_are_refused(options, why):
    with pytest.raises(UserError, match=why):
        load_rows(f"tiny_knights:{options}", "train")
