"""Soft over-long punishment: what must not change without anybody seeing it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.rewards.functions.overlong import soft_overlong


def test_the_slope_begins_or_ends_elsewhere():
    lengths = np.array([[1, 80], [81, 90], [99, 100], [101, 500]])
    expected = [[0, 0], [-0.05, -0.5], [-0.95, -1], [-1, -1]]
    np.testing.assert_allclose(soft_overlong(lengths, limit=100, buffer=20), expected, rtol=1e-15)


def test_the_figures_of_the_paper_come_out_otherwise():
    """DAPO: 16,384 tokens expected, 4,096 more as the buffer."""
    assert soft_overlong(np.array([16384, 18432, 20480]), 20480, 4096).tolist() == [0, -0.5, -1]


def test_without_a_buffer_somebody_is_punished_or_zero_divides():
    with np.errstate(all="raise"):
        assert soft_overlong(np.array([1, 7, 8]), limit=8, buffer=0).tolist() == [0, 0, 0]


def test_a_reward_shows_minus_zero():
    assert not np.signbit(soft_overlong(np.array([0, 5, 6]), limit=10, buffer=4)).any()


@given(n=st.integers(0, 300), limit=st.integers(1, 200), data=st.data())
def test_longer_is_punished_less(n, limit, data):
    buffer = data.draw(st.integers(1, limit))
    here, longer = soft_overlong(np.array([n, n + 1]), limit, buffer)
    assert -1 <= longer <= here <= 0
    assert (here == 0) == (n <= limit - buffer)
    assert (here == -1) == (n >= limit)
