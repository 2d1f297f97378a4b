"""Countdown: every problem can be solved, and no held-out problem is trained on."""

import ast
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.countdown import (
    CountdownOptions,
    make_row,
    make_rows,
    parse_options,
    solve,
    split_of,
)
from grpo_jax.errors import UserError

OPERATIONS = {ast.Add: "__add__", ast.Sub: "__sub__", ast.Mult: "__mul__", ast.Div: "__truediv__"}


def value(expression: str) -> Fraction:
    def walk(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return getattr(walk(node.left), OPERATIONS[type(node.op)])(walk(node.right))

    return walk(ast.parse(expression, mode="eval").body)


def assert_solves(expression, numbers, target, ops="+-*/"):
    assert value(expression) == target
    assert Counter(map(int, re.findall(r"\d+", expression))) == Counter(numbers)
    assert set(re.sub(r"[\d() ]", "", expression)) <= set(ops)


@given(
    index=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
    split=st.sampled_from(["train", "test"]),
    ops=st.sampled_from(["+-", "+-*", "+-*/", "*/+"]),
    low=st.integers(2, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_solution_of_a_problem_reaches_its_target(index, seed, split, ops, low):
    options = CountdownOptions(numbers=(low, low + 1), max=30, target=60, ops=ops)
    row = make_row(options, split, seed, index)
    assert_solves(row["solution"], row["numbers"], row["target"], ops)
    assert low <= len(row["numbers"]) <= low + 1
    assert all(1 <= number <= 30 for number in row["numbers"])
    assert 1 <= row["target"] <= 60
    assert split_of(row["numbers"], row["target"]) == split


def test_no_held_out_problem_is_trained_on():
    spec = "countdown:numbers=2-3,max=6,size=2000"  # a small world, so that chance would surely mix them
    seen = {split: problems(load_rows(spec, split, seed=seed)) for seed, split in [(1, "train"), (2, "test")]}
    assert min(map(len, seen.values())) > 50
    assert not seen["train"] & seen["test"]


def problems(rows):
    return {(tuple(sorted(row["numbers"])), row["target"]) for row in rows}


def test_the_split_does_not_depend_on_the_order_of_the_numbers():
    assert len({split_of(order, 24) for order in ([3, 8, 5], [8, 3, 5], [5, 8, 3])}) == 1


def test_about_a_tenth_is_held_out():
    held = sum(split_of([a, b], t) == "test" for a in range(1, 30) for b in range(30) for t in range(10))
    assert 0.08 < held / (29 * 30 * 10) < 0.12


def test_a_row_depends_on_the_seed_and_not_on_the_size_of_the_set():
    assert make_rows("size=5", "train", 3) == make_rows("size=9", "train", 3)[:5]
    assert make_rows("size=5", "train", 3) != make_rows("size=5", "train", 4)


def test_the_rows_stay_the_same_across_releases():
    row = make_rows("numbers=3,max=9,size=1", "train", 0)[0]
    assert (row["numbers"], row["target"], row["solution"]) == ([3, 3, 9], 18, "9 + (3 * 3)")


def test_the_prompt_states_numbers_target_operations_and_tags():
    row = make_rows("numbers=4,ops=+-,size=1", "test", 0)[0]
    (message,) = row["prompt"]
    assert message["role"] == "user"
    assert ", ".join(map(str, row["numbers"])) in message["content"]
    assert str(row["target"]) in message["content"]
    assert not {"*", "/ "} & set(message["content"])
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in message["content"]


@given(numbers=st.lists(st.integers(1, 12), min_size=1, max_size=4), target=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_what_the_solver_returns_is_a_solution(numbers, target):
    found = solve(numbers, target)
    if found:
        assert_solves(found, numbers, target)


@given(index=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_solver_finds_a_solution_if_there_is_one(index):
    row = make_row(CountdownOptions(numbers=(3, 4), max=12), "train", 0, index)
    assert solve(row["numbers"], row["target"]) is not None


def test_the_solver_uses_fractions_and_only_the_given_operations():
    assert_solves(solve([3, 3, 8, 8], 24), [3, 3, 8, 8], 24)  # only 8 / (3 - 8 / 3) does it
    assert solve([3, 3, 8, 8], 24, "+-*") is None
    assert solve([1, 1], 5) is None
    assert solve([5], 5) == "5"


def test_options_are_read_with_defaults():
    assert parse_options("") == CountdownOptions()
    assert parse_options("numbers=3, max=9,ops=+-,size=20,target=50") == CountdownOptions(
        (3, 3), 9, 50, "+-", 20
    )
    assert parse_options("numbers=3-5").numbers == (3, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("numbr=3", r"'numbr' \(did you mean 'numbers'\?\)"),
        ("numbers=9", "numbers=9 must lie in 2..6"),
        ("numbers=4-3", "numbers=4-3 must lie"),
        ("max=ten", "max=ten must be one whole number"),
        ("size=2,max=9,size=3", "the option 'size' is given twice; keep one"),
        ("size=0", "size=0 must be one whole number, at least 1"),
        (
            f"max={'9' * 400}",
            f"max={'9' * 40}… must be one whole number, at least 1 and at most 1,000,000,000",
        ),
        (f"max={'9' * 5000}", "must be one whole number, at least 1 and at most"),
        (f"numbers={'3' * 5000}", "must lie in 2..6"),
        ("max=3-4", "max=3-4 must be one"),
        ("ops=+^", "ops=.* must be some of"),
        ("ops", "ops= must be some of"),
    ],
)
def test_a_wrong_option_is_refused(text, says):
    with pytest.raises(UserError, match=says):
        parse_options(text)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="too few problems for the split 'train'"):
        make_rows("numbers=2,max=1,ops=-", "train", 0)  # 1 - 1 is no target


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"no split 'tset' .*'test'.*; it has train, test"):
        make_rows("", "tset", 0)
