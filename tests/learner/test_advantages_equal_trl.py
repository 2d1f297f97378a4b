"""Advantages against TRL's own `_generate_and_score_completions`, rewards of None and NaN included."""

import numpy as np
import pytest
from trl_oracle import generate_and_score, trl

from grpo_jax.learner.advantages import Advantages
from grpo_jax.runs.metrics import rollout_metrics

P, G = 5, 4
WEIGHTS = [1.0, 0.5, -0.25]


def random_rewards(seed, functions):
    """[P,G,functions]: unknown ones, a group of equal ones, a group with one known reward, and one with none."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 2, (P, G, functions)).round(1)
    values[rng.random(values.shape) < 0.25] = np.nan
    values[0] = values[0, :1]  # equal
    values[1, 1:] = np.nan  # one known reward
    values[2] = np.nan
    values[4, :, 0] = [1.0, 0.9, 0.0, 1.0]
    return values


def as_returned(values):
    """Rows of rewards as functions return them, None and NaN in turn."""
    none = np.indices(values.shape).sum(0) % 2 == 0
    return [
        [None if np.isnan(x) and n else float(x) for x, n in zip(row, which)]
        for row, which in zip(values.reshape(-1, values.shape[-1]), none.reshape(-1, values.shape[-1]))
    ]


def summed(values, weights):
    """The weighted sum over functions, of those that are known."""
    total = np.nansum(values * np.asarray(weights), axis=-1)
    return np.where(np.isnan(values).all(-1), np.nan, total)


def theirs(trainer, values, weights, **settings):
    """TRL's advantages [P,G] and metrics."""
    output, metrics = generate_and_score(trainer, as_returned(values), G, reward_weights=weights, **settings)
    return output["advantages"].numpy().reshape(P, G), metrics


def assert_equal(found, wanted):
    """TRL computes in float32: of a small spread + 1e-4 that is a few of its last bits."""
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("functions", [1, 3])
def test_group_advantages_equal_trls_at_every_scale(scale, functions):
    for seed in range(10):
        values, weights = random_rewards(seed, functions), WEIGHTS[:functions]
        wanted, _ = theirs(trl.GRPOTrainer, values, weights, scale_rewards=scale)
        found = Advantages(scale=scale)(summed(values, weights), values, np.ones((P, G, 3), bool))
        assert_equal(found, wanted)


def test_per_function_advantages_equal_trls():
    for seed in range(10):
        values = random_rewards(seed, 3)
        wanted, _ = theirs(trl.GRPOTrainer, values, WEIGHTS, multi_objective_aggregation="normalize_then_sum")
        made = Advantages(per_function=True, weights=WEIGHTS)
        assert_equal(made(summed(values, WEIGHTS), values, np.ones((P, G, 3), bool)), wanted)


@pytest.mark.parametrize("normalised", [False, True])
def test_leave_one_out_advantages_equal_trls(normalised):
    for seed in range(10):
        values = random_rewards(seed, 3)
        wanted, _ = theirs(trl.RLOOTrainer, values, WEIGHTS, normalize_advantages=normalised)
        made = Advantages("leave_one_out", "batch" if normalised else "none")
        assert_equal(made(summed(values, WEIGHTS), values, np.ones((P, G, 3), bool)), wanted)


@pytest.mark.parametrize("normalised", [False, True])
def test_leave_one_out_with_kl_in_the_reward_equals_trls(normalised):
    """RLOO takes beta times the row's k1 off its reward; a row whose mask is empty loses nothing."""
    rng, width = np.random.default_rng(0), 7
    values = random_rewards(3, 3)
    lengths = rng.integers(0, width + 1, (P, G))
    lengths[0, 0] = width
    mask = (np.arange(width) < lengths[..., None]).astype(np.float32)
    logprobs, reference = rng.normal(-1, 0.3, (2, P, G, width)).astype(np.float32)
    flat = lambda x: x.reshape(P * G, width)
    wanted, metrics = theirs(
        trl.RLOOTrainer,
        values,
        WEIGHTS,
        normalize_advantages=normalised,
        beta=0.3,
        mask=flat(mask),
        logprobs={"model": flat(logprobs), "reference": flat(reference)},
    )
    divergence = (logprobs - reference) * mask
    assert metrics["kl"] == pytest.approx(divergence.sum() / mask.sum(), abs=1e-6)
    made = Advantages("leave_one_out", "batch" if normalised else "none")
    assert_equal(made(summed(values, WEIGHTS), values, lengths, penalty=0.3 * divergence), wanted)


def test_reward_metrics_equal_trls():
    """Means, standard deviations and the share of groups without spread."""
    for seed in range(10):
        values = random_rewards(seed, 3)
        _, metrics = theirs(trl.GRPOTrainer, values, WEIGHTS)
        names = ["f0", "f1", "f2"]
        lengths, finished = np.full((P, G), 3), np.ones((P, G), bool)
        found = rollout_metrics(lengths, finished, values.reshape(-1, 3), names, WEIGHTS)
        assert metrics["frac_reward_zero_std"] > 0
        for name, value in metrics.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_trl_gives_the_golden_numbers_too():
    """Mean 0.725, standard deviation 0.4856."""
    values = np.tile(np.array([1.0, 0.9, 0.0, 1.0])[:, None], (P, 1, 1))
    wanted, _ = theirs(trl.GRPOTrainer, values, [1.0])
    np.testing.assert_allclose(wanted[0], [0.566162, 0.360285, -1.492609, 0.566162], atol=2e-6)
    assert_equal(Advantages()(summed(values, [1.0]), values, np.ones((P, G, 3), bool)), wanted)
