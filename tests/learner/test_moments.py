"""Adam's moments in bfloat16: stochastic rounding lets them change where rounding to nearest would not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.learner.moments import in_bfloat16, rounded


@pytest.mark.parametrize("value", [1.0, 1.001, -3.3e-9, 7.77e20, 0.0])
def test_stochastic_rounding_gives_a_neighbour_and_is_unbiased(value):
    x = np.full(20_000, value, np.float32)
    found = np.asarray(rounded(jax.random.key(3), x), np.float32)
    below, above = sorted({float(v) for v in found}) if len({*found}) > 1 else (found[0], found[0])
    gap = above - below
    assert gap <= abs(value) * 2**-7
    assert below <= x[0] <= above
    assert abs(found.mean(dtype=np.float64) - float(x[0])) <= 4 * gap / 2 / np.sqrt(
        len(x)
    )  # four deviations at most


def test_rounding_keeps_infinities_and_nan():
    odd = jnp.array([np.inf, -np.inf, np.nan], jnp.float32)
    np.testing.assert_array_equal(np.asarray(rounded(jax.random.key(0), odd), np.float32), odd)


def test_the_second_moment_decays_where_rounding_to_nearest_would_stall():
    """After one large gradient, 500 of zero: 0.999 ** 500 = 0.606 of it is left."""
    optimizer = in_bfloat16(optax.scale_by_adam())
    params = {"w": jnp.zeros(4096)}
    step = jax.jit(lambda g, s: optimizer.update(g, s, params)[1])
    state = step({"w": jnp.full(4096, 10.0)}, optimizer.init(params))
    start = float(state.inner.nu["w"].astype(jnp.float32).mean())
    nearest = state.inner.nu["w"]
    for _ in range(500):
        state = step({"w": jnp.zeros(4096)}, state)
        nearest = (nearest.astype(jnp.float32) * 0.999).astype(jnp.bfloat16)
    assert state.inner.nu["w"].dtype == jnp.bfloat16
    assert float(state.inner.nu["w"].astype(jnp.float32).mean()) == pytest.approx(
        start * 0.999**500, rel=2e-3
    )
    assert float(nearest.astype(jnp.float32).mean()) == pytest.approx(start, rel=4e-3)  # stuck


def test_rounding_depends_on_the_optimizer_state_alone():
    """A run that resumes goes on as it would have."""
    optimizer = in_bfloat16(optax.scale_by_adam(b1=0.9, b2=0.9))
    params = {"w": jnp.zeros(64)}
    gradient = {"w": jnp.linspace(0.1, 1, 64)}
    first = optimizer.update(gradient, optimizer.init(params), params)[1]
    again = [optimizer.update(gradient, first, params)[1] for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, again)):
        np.testing.assert_array_equal(a, b)
    assert int(again[0].updates) == 2
