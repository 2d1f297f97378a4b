"""The simulation of curriculum samplers on prompts of known pass rates: what each sampler improves."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import curriculum_simulation as simulation


@pytest.fixture(scope="module")
def shares():
    a, b = simulation.MIXES["mostly easy"]
    settings = simulation.SETTINGS | {"prompts": 300, "steps": 100, "P": 32}
    given = argparse.Namespace(**settings, a=a, b=b, learn=False)
    return {
        (name, dynamic): simulation.figures(given, simulation.WAYS[name], dynamic)
        for name in ("uniform", "history resampling")
        for dynamic in (False, True)
    }


def test_history_resampling_raises_the_share_of_groups_with_spread(shares):
    uniform, history = (
        shares[name, False]["groups sampled with spread"] for name in ("uniform", "history resampling")
    )
    assert uniform[1] == pytest.approx(0.36, abs=0.08), "the share that the distribution of rates implies"
    assert history[1] > uniform[1] + 0.25


def test_dynamic_sampling_costs_less_after_history_resampling(shares):
    assert shares["uniform", True]["groups trained with spread"][1] > 0.97
    assert shares["history resampling", True]["groups trained with spread"][1] > 0.97
    costs = [shares[name, True]["rollouts a step"][1] for name in ("uniform", "history resampling")]
    assert costs[1] < costs[0] - 0.8
