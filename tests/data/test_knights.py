"""Knights and knaves: each puzzle has one solution, and no held-out puzzle is trained on under other names."""

import ast
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.sources import load_rows
from grpo_jax.data.tasks.knights import (
    KnightsOptions,
    holds,
    in_words,
    make_row,
    parse_options,
    solve,
    split_of,
)
from grpo_jax.errors import UserError

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "knights_and_knaves"
KINDS = {"telling-truth": "knight", "lying": "knave"}


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["train", "test"]), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_a_puzzle_has_exactly_one_solution(index, seed, split, people):
    row = make_row(KnightsOptions(people=(people, people + 1)), split, seed, index)
    statements, solution = ast.literal_eval(row["statements"]), row["solution"]
    assert solve(statements) == [tuple(solution)]
    assert people <= len(row["names"]) == len({*row["names"]}) == row["people"] <= people + 1
    assert split_of(statements) == split
    question = row["prompt"][0]["content"]
    for name, said, knight in zip(row["names"], statements, solution):
        assert f'{name} says: "{in_words(said, row["names"])}."' in question
        assert holds(said, solution) == knight
        assert f"{name} is a {'knight' if knight else 'knave'}" in row["answer"]


@pytest.mark.parametrize(
    ("statement", "true_for"),
    [
        (("knight", 0), [(1, 0), (1, 1)]),
        (("knave", 1), [(0, 0), (1, 0)]),
        (("and", ("knight", 0), ("knave", 1)), [(1, 0)]),
        (("or", ("knight", 0), ("knave", 1)), [(0, 0), (1, 0), (1, 1)]),
        (("->", ("knight", 0), ("knight", 1)), [(0, 0), (0, 1), (1, 1)]),
        (("<=>", ("knight", 0), ("knight", 1)), [(0, 0), (1, 1)]),
    ],
    ids=str,
)
def test_a_connective_has_its_truth_table(statement, true_for):
    everyone = [(a, b) for a in (0, 1) for b in (0, 1)]
    assert [who for who in everyone if holds(statement, [bool(w) for w in who])] == true_for


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_split_does_not_depend_on_the_order_of_the_people(index, seed):
    row = make_row(KnightsOptions(people=(3, 5)), "test", seed, index)
    statements = ast.literal_eval(row["statements"])
    order = list(range(len(statements)))
    random.Random(seed).shuffle(order)
    moved = lambda s: (s[0], order[s[1]]) if s[0] in ("knight", "knave") else (s[0], moved(s[1]), moved(s[2]))
    shuffled = [moved(said) for _, said in sorted(zip(order, statements))]
    assert len(solve(shuffled)) == 1
    assert split_of(shuffled) == "test"


def test_no_held_out_puzzle_is_trained_on():
    spec = "knights_and_knaves:people=2-3,size=1500"  # a small world, so that chance would surely mix them
    seen = [{r["statements"] for r in load_rows(spec, split, seed=7)} for split in ("train", "test")]
    assert min(map(len, seen)) > 20
    assert not seen[0] & seen[1]


def test_a_row_depends_on_the_seed_and_not_on_the_size_of_the_set():
    spec = "knights_and_knaves:people=3-5,size="
    short, long = (load_rows(f"{spec}{n}", "train", seed=1) for n in (5, 9))
    assert long[:5] == short != load_rows(f"{spec}5", "train", seed=2)


@pytest.mark.parametrize(
    ("people", "size", "shares"),
    [
        ("3-7", 45, {3: 9, 4: 9, 5: 9, 6: 9, 7: 9}),
        ("3-7", 7, {3: 2, 4: 2, 5: 1, 6: 1, 7: 1}),
        ("2-4", 10, {3: 5, 4: 5}),  # two have no puzzle
        ("4", 3, {4: 3}),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_spread_evenly_over_the_numbers_of_people(people, size, shares, split):
    rows = load_rows(f"knights_and_knaves:people={people},size={size}", split)
    assert Counter(row["people"] for row in rows) == shares


def test_two_people_who_speak_of_each_other_make_no_puzzle():
    claims = lambda person: [("knight", person), ("knave", person)]
    assert all(len(solve(pair)) != 1 for pair in itertools.product(claims(1), claims(0)))


@pytest.mark.parametrize("people", [3, 4, 5])
def test_the_published_puzzles_have_their_published_solutions(people):
    """The oracle: solutions that others have found."""
    folder = PUBLISHED / f"{people}ppl"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    ours = lambda s: (KINDS[s[0]], s[1]) if s[0] in KINDS else (s[0], *map(ours, s[1:]))
    rows = load_rows(str(folder), "test")
    assert len(rows) == 100
    solved = 0
    for row in rows:
        statements = ast.literal_eval(row["reward_model"]["ground_truth"]["statements"])
        if "not" not in str(statements):
            assert solve([ours(s) for s in statements]) == [tuple(row["solution"])]
            solved += 1
    assert solved > 50


@pytest.mark.parametrize(
    ("spec", "split", "said"),
    [
        ("people=1", "train", "people=1 must lie in 2..8"),
        ("people=9", "train", "people=9 must lie in 2..8"),
        ("people=5-3", "train", "people=5-3 must lie in 2..8"),
        ("people=-3", "train", "people=-3 must lie in 2..8"),
        ("people=", "train", "people= must lie in 2..8"),
        ("persons=3", "train", "unknown option 'persons'"),
        ("size=0", "train", "size=0 must be one whole number"),
        ("", "validation", "no split 'validation'"),
    ],
)
def test_impossible_options_are_refused(spec, split, said):
    with pytest.raises(UserError, match=said):
        load_rows(f"knights_and_knaves:{spec}", split)
    assert parse_options("people=3-7,size=4") == KnightsOptions((3, 7), 4)
