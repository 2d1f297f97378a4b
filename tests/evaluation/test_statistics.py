"""avg@N, pass@k and maj@N equal their definitions, counted out."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.evaluation.statistics import (
    avg_at_n,
    majority_at_n,
    pass_at_k,
    powers_of_two,
    standard_error,
)

OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=9)


@settings(deadline=None)
@given(OUTCOMES, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(outcomes, data):
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(itertools.combinations(outcomes, k))
    expected = Fraction(sum(map(any, subsets)), len(subsets))
    assert pass_at_k(np.array([outcomes]), k)[0] == pytest.approx(float(expected), abs=1e-12)


def test_pass_at_k_of_many_samples_stays_within_0_and_1():
    """Where binomials have hundreds of digits."""
    successes = np.arange(1000)[None, :] < np.array([0, 1, 500, 999, 1000])[:, None]
    for k in (1, 2, 500, 1000):
        found = pass_at_k(successes, k)
        assert ((found >= 0) & (found <= 1)).all()
        assert found[0] == 0
        assert found[-1] == 1
    np.testing.assert_allclose(pass_at_k(successes, 1), avg_at_n(successes), atol=1e-12)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_pass_at_k_of_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        pass_at_k(np.ones((2, 4), bool), k)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8), st.integers(0, 7))
def test_a_tied_majority_scores_the_mean_of_the_tied(votes, right):
    """Which answers are right: the bits of `right`."""
    good = {letter for bit, letter in enumerate("abc") if right >> bit & 1}
    successes = np.array([[vote in good for vote in votes]])
    counts = Counter(filter(None, votes))
    winners = [vote for vote in counts if counts[vote] == max(counts.values())]
    expected = sum(winner in good for winner in winners) / len(winners) if winners else 0
    assert majority_at_n([votes], successes)[0] == pytest.approx(expected)


@settings(deadline=None)
@given(st.permutations(["a", "a", "b", "b", None, "c"]))
def test_a_tie_does_not_depend_on_the_order_of_the_samples(votes):
    successes = np.array([[vote == "a" for vote in votes]])
    assert majority_at_n([votes], successes)[0] == 0.5


def test_the_majority_wins_even_if_wrong():
    assert majority_at_n(["aab", "aab"], np.array([[1, 1, 0], [0, 0, 1]])).tolist() == [1, 0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_error_is_that_of_a_mean_over_problems(values):
    expected = np.sqrt(np.sum((np.array(values) - np.mean(values)) ** 2) / (len(values) - 1) / len(values))
    assert standard_error(np.array(values)) == pytest.approx(expected, abs=1e-12)


def test_the_error_of_a_single_problem_is_zero():
    assert standard_error(np.array([0.3])) == 0.0


def test_samples_of_a_problem_are_not_counted_as_independent():
    """Two problems, one always solved and one never: of ten samples each the error stays that of two draws."""
    successes = np.repeat([[True], [False]], 10, axis=1)
    assert standard_error(avg_at_n(successes)) == pytest.approx(0.5)


def test_pass_at_k_is_reported_for_powers_of_two_and_n():
    assert [powers_of_two(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
