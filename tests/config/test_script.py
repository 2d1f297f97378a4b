"""A script's batch sizes, steps and defaults mean what they mean in TRL."""

import dataclasses
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo_jax.config import GRPOConfig, ScriptConfig
from grpo_jax.config.checks import changed
from grpo_jax.errors import UserError

SIZES = ("prompts_per_step", "num_minibatches", "micro_batch_size")
sizes_of = lambda config: tuple(getattr(config, name) for name in SIZES)


def trls(rows, accumulated, held, drawn, devices):
    """(rows of a rollout, updates of it, rows at a time) by TRL 1.16's own arithmetic."""
    step = rows * devices
    held = drawn // step if drawn else held or accumulated
    return step * held, held // accumulated, step


@settings(deadline=None, max_examples=200)
@given(
    rows=st.integers(1, 8),
    accumulated=st.integers(1, 4),
    held=st.none() | st.integers(1, 8),
    as_rows=st.booleans(),
    devices=st.sampled_from([1, 2, 8]),
    G=st.sampled_from([2, 4, 8]),
    iterations=st.integers(1, 3),
    steps=st.integers(1, 40),
)
def test_a_rollout_has_the_rows_and_updates_that_it_has_in_trl(
    rows, accumulated, held, as_rows, devices, G, iterations, steps
):
    drawn = rows * devices * held if held and as_rows else None
    given = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
    given |= {"generation_batch_size": drawn} if drawn else {"steps_per_generation": held}
    config = ScriptConfig(**given, num_generations=G, num_iterations=iterations, max_steps=steps)
    total, updates, at_once = trls(rows, accumulated, held, drawn, devices)
    assume(total % G == 0 and updates and (held or accumulated) % accumulated == 0)
    ours, sentence = config.in_rollouts(devices)
    assert sizes_of(ours) == (total // G, updates, at_once)
    assert ours.max_steps == math.ceil(steps / (updates * iterations))
    assert f"{total} rows a rollout" in sentence


def test_without_sizes_each_device_computes_eight_rows():
    assert sizes_of(ScriptConfig().in_rollouts(4)[0]) == (4, 1, 32)


def test_rollouts_smaller_than_an_update_are_one_rollout():
    """They are by the same weights."""
    config = ScriptConfig(steps_per_generation=1, gradient_accumulation_steps=4)
    assert sizes_of(config.in_rollouts(1)[0]) == (4, 1, 8)


def test_sizes_and_steps_in_our_words_stay_as_they_are():
    config = ScriptConfig(prompts_per_step=3, num_minibatches=2, num_iterations=2, max_steps=5, save_steps=2)
    ours, sentence = config.in_rollouts(8)
    assert (ours.prompts_per_step, ours.num_minibatches, ours.max_steps, ours.save_steps) == (3, 2, 5, 2)
    assert sentence is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"per_device_train_batch_size": 3}, "num_generations = 8: the 3 rows of a rollout"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "steps_per_generation = 3: an update of 2 batches would take rows of two rollouts",
        ),
        ({"generation_batch_size": 12}, "generation_batch_size = 12: .* use a multiple of that, such as 8"),
        (
            {"per_device_train_batch_size": 8, "prompts_per_step": 4},
            "per_device_train_batch_size = 8: prompts_per_step = 4 gives the same size",
        ),
        (
            {"generation_batch_size": 16, "steps_per_generation": 2},
            "generation_batch_size = 16: steps_per_generation is 2 already",
        ),
    ],
)
def test_sizes_that_no_rollout_has_are_refused_with_the_nearest_one(values, words):
    with pytest.raises(UserError, match=words):
        ScriptConfig(**values).in_rollouts(1)


OTHERWISE = {
    "gradient_checkpointing": "full",
    "max_steps": 200,  # num_train_epochs counts
    "eval_steps": 0,
    "save_total_limit": 0,
    "optim": "adamw",  # one implementation
    "top_k": 0,
    "min_p": 0.0,
    "per_device_train_batch_size": None,  # 8 and 1, unless the sizes are given in our words
    "gradient_accumulation_steps": None,
    "output_dir": "runs/grpo",
}
"""Defaults that are written otherwise here, and mean the same; but for output_dir."""


def test_every_default_is_trls():
    trl = pytest.importorskip("trl")
    fields = {field.name: field for field in dataclasses.fields(trl.GRPOConfig)}
    for name in fields.keys() & ScriptConfig.model_fields.keys():
        made = fields[name].default_factory
        theirs = fields[name].default if made is dataclasses.MISSING else made()
        ours = ScriptConfig.model_fields[name].get_default(call_default_factory=True)
        assert ours == OTHERWISE.get(name, theirs), name


def test_the_defaults_reach_the_run():
    ours, _ = ScriptConfig().in_rollouts(1)
    assert type(ours) is GRPOConfig
    assert (ours.seed, ours.save_steps, ours.save_total_limit, ours.max_completion_length) == (
        42,
        500,
        0,
        512,
    )
    assert ours.num_train_epochs == 3


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"max_steps": -1}, {"num_train_epochs": 3.0}),
        ({"max_steps": 7, "num_train_epochs": 2}, {"max_steps": 7, "num_train_epochs": None}),
        ({"max_steps": None, "num_train_epochs": 2}, {"num_train_epochs": 2.0}),
        ({"epsilon": 10}, {"epsilon": 1.0, "epsilon_high": 10.0}),
        ({"epsilon": 10, "epsilon_high": 12}, {"epsilon": 1.0, "epsilon_high": 12.0}),
    ],
)
def test_values_that_trl_allows_are_translated(given, wanted):
    ours, _ = ScriptConfig(**given).in_rollouts(1)
    assert {name: getattr(ours, name) for name in wanted} == wanted


def test_settings_without_effect_are_ignored_with_a_line_on_stderr_as_in_trl(capsys):
    given = {"use_bias_correction_kl": False, "loss_type": "sapo", "epsilon_high": 0.3}
    ours, _ = ScriptConfig(**given).in_rollouts(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "epsilon_high = 0.3: no effect, as loss_type sapo does not clip",
        "use_bias_correction_kl = False: no effect, as beta is 0",
    ]
    assert not any(changed(ours, name) for name in ("use_bias_correction_kl", "epsilon_high"))


@pytest.mark.parametrize(("off", "rate"), [(True, 0.0), (False, 0.1)])
def test_disable_dropout_wins_over_a_rate_of_dropout_as_in_trl(off, rate):
    config, _ = ScriptConfig(lora_r=4, lora_dropout=0.1, disable_dropout=off).in_rollouts(1)
    assert config.lora_dropout == rate


def test_an_error_of_a_reward_stops_a_script_as_in_trl():
    assert ScriptConfig().in_rollouts(1)[0].on_reward_error == "stop"


def test_a_script_may_change_settings_and_all_checks_run_again():
    config = ScriptConfig(max_steps=4)
    config.learning_rate = 0.5
    assert (config.learning_rate, config.max_steps) == (0.5, 4)
    assert changed(config, "learning_rate")
    with pytest.raises(UserError, match="temperature = -1"):
        config.temperature = -1
    with pytest.raises(UserError, match="no_such: no such setting"):
        config.no_such = 1
    assert config.in_rollouts(1)[0].learning_rate == 0.5


def test_other_settings_say_how_to_make_a_changed_copy():
    with pytest.raises(UserError, match=r"seed: settings do not change; write replace\(seed=\.\.\.\)"):
        GRPOConfig().seed = 3
