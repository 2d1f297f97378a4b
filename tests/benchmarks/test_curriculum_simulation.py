"""The simulation of the drawing: with known rates, what each way of drawing is for."""

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


def test_history_resampling_does_not_raise_the_share_of_groups_that_can_teach(shares):
    uniform, history = (
        shares[name, False]["groups sampled with spread"] for name in ("uniform", "history resampling")
    )
    assert uniform[1] == pytest.approx(0.36, abs=0.08), "what the distribution says itself"
    assert history[1] > uniform[1] + 0.25


def test_dynamic_sampling_leaves_groups_that_teach_nothing_or_costs_as_much_after_resampling(shares):
    assert shares["uniform", True]["groups trained with spread"][1] > 0.97
    assert shares["history resampling", True]["groups trained with spread"][1] > 0.97
    costs = [shares[name, True]["rollouts a step"][1] for name in ("uniform", "history resampling")]
    assert costs[1] < costs[0] - 0.8
