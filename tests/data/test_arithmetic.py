"""Arithmetic: Python's own value of each problem, held-out problems apart, and the reward that scores them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.arithmetic import ArithmeticOptions, make_row, same
from grpo_jax.data.tasks.common import split_of
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.gsm8k import gsm8k


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["train", "test"]), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_the_answer_is_the_value_of_the_expression(index, seed, split, terms):
    row = make_row(ArithmeticOptions(terms=(terms, terms + 1), max=50), split, seed, index)
    assert set(row["expression"]) <= set("0123456789+-* ")
    assert row["answer"] == str(eval(row["expression"]))
    assert terms <= row["terms"] == len(row["expression"].split()) // 2 + 1 <= terms + 1
    assert f"What is {row['expression']}?" in row["prompt"][0]["content"]
    numbers, signs = row["expression"].split()[::2], row["expression"].split()[1::2]
    assert split_of(same(list(map(int, numbers)), signs)) == split


def test_a_form_changes_what_is_asked_for_alone():
    think, number = (
        load_rows(f"arithmetic:form={form},size=20", "train", seed=0) for form in ("think", "number")
    )
    assert [row["expression"] for row in think] == [row["expression"] for row in number]
    assert (
        number[0]["prompt"][0]["content"]
        == f"What is {number[0]['expression']}? Answer with the number alone."
    )
    assert "<answer>7</answer>" in think[0]["prompt"][0]["content"]
    with pytest.raises(UserError, match="form=word must be one of think, number"):
        load_rows("arithmetic:form=word", "train", seed=0)


def test_no_held_out_problem_is_trained_on():
    """Nor is one with its summands or factors in another order."""
    spec = "arithmetic:terms=2-3,max=9,ops=+*,size=600"
    seen = [
        {tuple(sorted(row["expression"].split(" + "), key=_sorted)) for row in load_rows(spec, s, seed=i)}
        for i, s in enumerate(["train", "test"])
    ]
    seen = [{tuple(sorted(map(_sorted, summands))) for summands in one} for one in seen]
    assert min(map(len, seen)) > 5
    assert not seen[0] & seen[1]


def _sorted(factors):
    return tuple(sorted(factors.split(" * ")))


def test_only_reordered_summands_and_factors_make_the_same_problem():
    assert same([2, 3, 4], "-*") == same([2, 4, 3], "-*") != same([3, 2, 4], "-*")
    assert same([2, 3, 4], "*+") == same([4, 3, 2], "+*") != same([2, 3, 4], "+*")
    assert same([12], "") != same([1, 2], "*")


def test_the_answer_of_a_row_is_rewarded_and_another_answer_is_not():
    rows = load_rows("arithmetic:size=50", "train")
    assert (
        rows
        == load_rows("arithmetic:size=60", "train")[:50]
        != load_rows("arithmetic:size=50", "train", seed=1)
    )
    golds = [row["answer"] for row in rows]
    said = [f"<think>t</think><answer>{gold}</answer>" for gold in golds]
    assert gsm8k([""] * 50, said, golds) == [1.0] * 50
    assert sum(gsm8k([""] * 50, said[1:] + said[:1], golds)) < 5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ops=/", "ops=/ must be some of"),
        ("terms=1", "terms=1 must lie in 2..10"),
        ("max=0", "max=0 must be one whole number"),
        ("term=3", "unknown option 'term'"),
        ("terms=2,max=1,ops=+", "too few problems for the split"),
    ],
)
def test_impossible_options_are_refused(spec, said):
    with pytest.raises(UserError, match=said):
        load_rows(f"arithmetic:{spec}", "test"), load_rows(f"arithmetic:{spec}", "train")
