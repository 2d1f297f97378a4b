"""Difficulty: levels, and a window whose bounds are strict."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curation.difficulty import graded, level, within
from grpo_jax.data.curation.outcome import CurationOutcome


@pytest.mark.parametrize(
    ("rate", "word"),
    [
        (1.0, "easy"),
        (0.75, "easy"),
        (0.74, "medium"),
        (0.26, "medium"),
        (0.25, "hard"),
        (0, "hard"),
        (None, "unknown"),
    ],
)
def test_the_bounds_of_the_levels_belong_to_easy_and_hard(rate, word):
    assert level(rate) == word


def test_rows_that_were_not_measured_are_dropped():
    rows = [{"id": 0}, {"id": 1, "pass_rate": 9}, {"id": 2}]
    outcome = graded(rows, [0.5, 1.0, None], [True, True, False], 0.75, 0.25)
    assert outcome.kept == [
        {"id": 0, "pass_rate": 0.5, "difficulty": "medium"},
        {"id": 1, "pass_rate": 1.0, "difficulty": "easy"},
    ]
    assert [(d.row, d.reason) for d in outcome.dropped] == [(3, "too_long")]
    assert outcome.figures == {
        "levels": {"easy": 1, "medium": 1},
        "mean_pass_rate": 0.75,
        "all_solved": 1,
        "none_solved": 0,
    }


def reasons(rates, low, high):
    rows = [{"pass_rate": rate} for rate in rates]
    return [d.reason for d in within(rows, low, high).dropped]


def test_bounds_are_exclusive_and_rows_without_a_rate_are_dropped():
    assert reasons([0, 0.125, 1, None, "x", math.nan, True, "0.5"], 0, 1) == [
        *("too_low", "too_high", "no_rate", "no_rate", "no_rate", "no_rate"),
    ]
    assert reasons([0, 1], None, 1) == ["too_high"]
    assert reasons([10**400], 0, 1) == ["no_rate"]
    assert reasons([0, 1], 0, None) == ["too_low"]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20), st.floats(0, 0.5), st.floats(0.5, 1))
def test_rows_within_the_bounds_are_kept_and_no_row_is_lost(rates, low, high):
    rows = [{"id": number, "pass_rate": rate} for number, rate in enumerate(rates)]
    outcome = within(rows, low, high)
    assert outcome.kept == [
        row for row in rows if row["pass_rate"] is not None and low < row["pass_rate"] < high
    ]
    assert sorted([row["id"] for row in outcome.kept] + [d.row - 1 for d in outcome.dropped]) == list(
        range(len(rows))
    )


def test_an_outcome_that_lost_a_row_is_refused():
    with pytest.raises(AssertionError, match="vanished"):
        CurationOutcome(2, [{}], [])
