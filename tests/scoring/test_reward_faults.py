"""Rewards that fail inside a run: counted, reported, and survived, unless the settings say stop."""

import json
import re
import sys
import time

import cloudpickle
import pytest

from grpo_jax import GRPOTrainer, UserError
from grpo_jax.config import GRPOConfig

pytestmark = pytest.mark.usefixtures("shared_programs")

# Reward workers get functions of this file themselves, and need not import it, with all that it imports.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def vowels(completions, **columns):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def sometimes_raises(prompts, completions, letter, **columns):
    if "a" in letter:
        raise ZeroDivisionError("no luck")
    return vowels(completions)


def sometimes_hangs(prompts, completions, letter, **columns):
    if "a" in letter:
        time.sleep(60)
    return vowels(completions)


def sometimes_nan(completions, letter, **columns):
    return [float("nan") if one == "a" else 1.0 for one in letter]


def always_raises(completions, **columns):
    raise KeyError("a typo")


def only_a(completions, letter, **columns):
    return [1.0 if one == "a" else None for one in letter]


@pytest.fixture
def train(tiny_settings, tmp_path):
    """`train(reward, **changes)`: the lines of metrics of a short run with that reward beside `vowels`."""

    def run(*rewards, **changes):
        settings = tiny_settings | {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "reward_timeout": 1.0,
        }
        settings |= {"eval_prompts": 0, "reward_workers": 2, "shuffle_dataset": False} | changes
        model = settings.pop("model")
        settings.pop("rewards")
        GRPOTrainer(model, list(rewards), GRPOConfig(**settings)).train()
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]

    return run


@pytest.mark.parametrize(
    ("reward", "kind"),
    [(sometimes_raises, "errors"), (sometimes_hangs, "timeouts"), (sometimes_nan, "nans")],
)
def test_a_fault_is_counted_and_reported_once_and_the_run_goes_on(reward, kind, train, capfd):
    lines = train(vowels, reward)
    # The letters go a e i o u a e i | o u a e i o u a: two prompts with an a in each step, of two completions.
    assert [line[f"rewards/{reward.__name__}/{kind}"] for line in lines] == [4, 4]
    assert lines[0]["grad_norm"] > 0
    reported = [
        line for line in capfd.readouterr().err.splitlines() if f"'{reward.__name__}' had {kind}" in line
    ]
    assert len(reported) == 1


def test_on_reward_error_stop_ends_the_run_at_the_first_fault(train):
    with pytest.raises(UserError, match=r"'sometimes_raises' failed on the completion(.|\n)*no luck"):
        train(vowels, sometimes_raises, on_reward_error="stop")


def test_a_reward_that_always_fails_is_reported_once_and_the_run_goes_on(train, capfd):
    lines = train(vowels, always_raises)
    assert [line["rewards/always_raises/errors"] for line in lines] == [16, 16]
    assert lines[0]["grad_norm"] > 0  # the other reward still has a gradient
    reported = [
        line for line in capfd.readouterr().err.splitlines() if "failed on all 16 completions" in line
    ]
    assert len(reported) == 1


def test_steps_without_any_reward_have_no_gradient_and_the_run_completes(train, tmp_path, capfd):
    lines = train(always_raises, eval_prompts=8)
    assert lines_about_none(capfd) == [], "they are reported as failures"
    assert [(line["reward"], line["grad_norm"]) for line in lines] == [(None, 0.0), (None, 0.0)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"]["rewards/always_raises/errors"] == 8
    assert (tmp_path / "run" / "hf" / "config.json").exists()


def test_on_reward_error_stop_ends_the_run_at_a_reward_that_always_fails(train):
    with pytest.raises(UserError, match=r"'always_raises' failed(.|\n)*a typo"):
        train(vowels, always_raises, on_reward_error="stop")


def test_evaluation_results_count_the_errors_of_rewards(train, tmp_path):
    train(vowels, sometimes_raises, eval_prompts=8)
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["before"]
    assert before["rewards/sometimes_raises/errors"] == 2  # two of eight prompts have the letter a, greedily


def lines_about_none(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if "every function returned None" in line]


def test_a_row_for_which_every_reward_is_none_is_shown_once_with_its_columns_as_in_trl(train, capfd):
    train(only_a, eval_prompts=8)
    (line,) = lines_about_none(capfd)
    assert re.search(r"letter = '[^a]'.*, prompt = '.*', completion = '", line)
