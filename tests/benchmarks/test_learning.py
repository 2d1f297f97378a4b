"""The benchmark of learning: `grpo-jax train` takes its commands, and its curves are read from a run's folder."""

import json
import sys
from pathlib import Path

import pytest

from grpo_jax.config import GRPOConfig, load_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import learning


@pytest.mark.parametrize("name", learning.RUNS)
def test_train_accepts_the_command_of_every_run(name, tmp_path):
    _, _, _, verb, recipe, tiny, *options = learning.command_of(name, 3, tmp_path)
    assert (verb, tiny) == ("train", "--tiny")
    given = {key.removeprefix("--"): value for key, value in zip(options[::2], options[1::2])}
    settings = load_settings(GRPOConfig, recipe, given, tiny=True)
    assert (settings.seed, settings.eval_prompts) == (3, 256)
    assert ("history resampling" in name) == settings.history_resampling
    assert (name == "logic-rl") == bool(settings.curriculum)


def test_curves_begin_with_the_success_before_the_first_step(tmp_path):
    ends = [{"success": value, "success_stderr": 0.03} for value in (0.25, 0.5)]
    (tmp_path / "summary.json").write_text(json.dumps({"before": ends[0], "after": ends[1]}))
    lines = [{"step": step, "frac_reward_zero_std": step / 4, "num_tokens": 9 * step} for step in (1, 2)]
    lines[1]["eval/success"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = learning.curves(tmp_path)
    assert found["held-out success"] == [[0, 0.25], [2, 0.5]]
    assert found["groups with spread"] == [[1, 0.75], [2, 0.5]]
    assert not learning.holds({**found, "seconds": 601})
    assert learning.holds({**found, "seconds": 599})
    assert not learning.holds({**found, "success_after": 0.44, "seconds": 1})
