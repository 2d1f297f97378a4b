"""The soft overlong penalty, by its formula and by the figures of the paper."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.rewards.functions.overlong import soft_overlong


def test_the_penalty_grows_linearly_over_the_buffer_up_to_one():
    lengths = np.array([[1, 80], [81, 90], [99, 100], [101, 500]])
    expected = [[0, 0], [-0.05, -0.5], [-0.95, -1], [-1, -1]]
    np.testing.assert_allclose(soft_overlong(lengths, limit=100, buffer=20), expected, rtol=1e-15)


def test_the_penalty_has_the_figures_of_the_paper():
    """DAPO: 16,384 tokens expected, 4,096 more as the buffer."""
    assert soft_overlong(np.array([16384, 18432, 20480]), 20480, 4096).tolist() == [0, -0.5, -1]


def test_without_a_buffer_there_is_no_penalty_and_no_division_by_zero():
    with np.errstate(all="raise"):
        assert soft_overlong(np.array([1, 7, 8]), limit=8, buffer=0).tolist() == [0, 0, 0]


def test_no_penalty_is_a_positive_zero():
    assert not np.signbit(soft_overlong(np.array([0, 5, 6]), limit=10, buffer=4)).any()


@given(n=st.integers(0, 300), limit=st.integers(1, 200), data=st.data())
def test_a_longer_completion_is_never_penalised_less(n, limit, data):
    buffer = data.draw(st.integers(1, limit))
    here, longer = soft_overlong(np.array([n, n + 1]), limit, buffer)
    assert -1 <= longer <= here <= 0
    assert (here == 0) == (n <= limit - buffer)
    assert (here == -1) == (n >= limit)
