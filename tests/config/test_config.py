"""Settings: bad ones are refused in one line that names field, value and fix; good ones survive YAML."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from grpo_jax import recipes
from grpo_jax.config import EvalConfig, GenerateConfig, GRPOConfig, SFTConfig, load_settings
from grpo_jax.config.base import sections
from grpo_jax.config.load import from_text
from grpo_jax.config.objective_checks import CLIPPED, NEEDS, warnings_of
from grpo_jax.config.reject import RejectConfig
from grpo_jax.errors import UserError
from grpo_jax.pipelines.steps import load_pipeline
from grpo_jax.sharding.mesh_spec import parse_mesh

CONFIGS = [GRPOConfig, SFTConfig, EvalConfig, GenerateConfig, RejectConfig]
NEEDED = {
    SFTConfig: {"model": "m", "dataset": "rows.jsonl"},
    RejectConfig: {"model": "m", "dataset": "rows.jsonl"},
    EvalConfig: {"model": "m"},
    GenerateConfig: {"model": "m", "prompt": "Hello"},
}

BAD = [
    # what is given                                what the message must say
    ({"lerning_rate": 1e-6}, "lerning_rate: no such setting (did you mean 'learning_rate'?)"),
    ({"max_steps": "many"}, "max_steps = 'many': must be a whole number"),
    ({"max_steps": 1.5}, "max_steps = 1.5: must be a whole number"),
    ({"max_steps": -1}, "max_steps = -1: must be at least 1"),
    ({"model": 7}, "model = 7: must be text"),
    ({"model": ""}, "model = '': must have at least 1 character"),
    ({"shuffle_dataset": "maybe"}, "shuffle_dataset = 'maybe': must be true or false"),
    ({"seed": -1}, "seed = -1: must be at least 0"),
    ({"seed": 2**32}, "seed = 4294967296: must be below 4294967296"),
    ({"output_dir": ""}, "output_dir = ''"),
    ({"learning_rate": 0}, "learning_rate = 0: must be above 0"),
    ({"learning_rate": "nan"}, "learning_rate = 'nan': must be a finite number"),
    ({"learning_rate": "1e-6x"}, "learning_rate = '1e-6x': must be a number"),
    ({"loss_type": "drgrpo"}, "did you mean 'dr_grpo'?"),
    ({"dtype": "float16"}, "dtype = 'float16': must be 'auto', 'float32' or 'bfloat16'"),
    ({"scale_rewards": "yes"}, "scale_rewards = 'yes': must be 'group', 'batch' or 'none'"),
    ({"top_p": 0}, "top_p = 0: must be above 0"),
    ({"top_p": 1.1}, "top_p = 1.1: must be at most 1"),
    ({"min_p": 1}, "min_p = 1: must be below 1"),
    ({"top_k": -1}, "top_k = -1: must be at least 0"),
    ({"min_tokens": 257}, "min_tokens = 257: completions have at most max_completion_length = 256 tokens"),
    ({"stop_strings": [""]}, "stop_strings[0] = '': must have at least 1 character"),
    ({"stop_strings": "[a"}, "stop_strings = [a: not a list"),
    ({"stop_strings": ["\ufffd"]}, "U+FFFD is no text"),
    ({"banned_tokens": [1.5]}, "banned_tokens = [1.5]: must be texts or ids"),
    ({"banned_tokens": [True]}, "banned_tokens = [True]: must be texts or ids"),
    ({"stop": "END"}, "stop = 'END': not a setting here; write stop_strings"),
    ({"temperature": 0}, "temperature = 0: greedy completions of a prompt are all the same"),
    ({"temperature": -1}, "temperature = -1: must be at least 0"),
    ({"epsilon": 1.5}, "epsilon = 1.5: must be at most 1"),
    ({"epsilon_high": -0.1}, "epsilon_high = -0.1: must be at least 0"),
    ({"adam_beta2": 1.0}, "adam_beta2 = 1.0: must be below 1"),
    ({"num_generations": 1}, "num_generations = 1: must be at least 2"),
    ({"num_minibatches": 3}, "num_minibatches = 3: 64 rows (prompts_per_step 8 x num_generations 8)"),
    ({"num_minibatches": 3}, "use 2 or 4"),
    ({"num_minibatches": 65}, "use 64"),
    ({"micro_batch_size": 7}, "micro_batch_size = 7: 64 rows do not divide by it; use 4 or 8"),
    ({"num_minibatches": 2, "micro_batch_size": 64}, "micro_batch_size = 64: 32 rows do not divide"),
    ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_ratio = 0.1: warmup_steps is 5 already; keep one"),
    ({"warmup_steps": 300}, "warmup_steps = 300: longer than the run; use at most max_steps, 200"),
    ({"warmup_ratio": 3}, "warmup_ratio = 3: must be at most 1"),
    ({"rewards": []}, "rewards = []: must have at least 1 item"),
    ({"rewards": "a,a"}, "a is named twice"),
    ({"rewards": "[a"}, "rewards = [a: not a list; write a,b or [a, b]"),
    ({"rewards": "countdown", "reward_weights": "1,2"}, "give one for each of the rewards ['countdown']"),
    ({"reward_weights": "x"}, "reward_weights[0] = 'x': must be a number"),
    ({"reward_weights": [0]}, "every reward would be 0"),
    ({"eval_steps": 5, "eval_prompts": 0}, "eval_steps = 5: eval_prompts is 0"),
    ({"eval_top_p": 0.9}, "eval_top_p = 0.9: eval_temperature is 0, which is greedy; set it above 0"),
    (
        {"min_tokens": 9, "eval_max_completion_length": 8},
        "min_tokens = 9: completions have at most eval_max_completion_length = 8 tokens",
    ),
    ({"eval_dataset": {}}, "eval_dataset = {}: must be a data set, or several as {name: data set}"),
    ({"eval_samples": 4}, "eval_samples = 4: greedy samples are all the same; set eval_temperature above 0"),
    ({"mesh": "fdsp=8"}, "mesh = 'fdsp=8': no axis 'fdsp' (did you mean 'fsdp'?)"),
    ({"mesh": "fsdp=0"}, "fsdp needs a whole number above 0"),
    ({"mesh": "fsdp=2,fsdp=4"}, "fsdp is given twice"),
    ({"mesh": ""}, "mesh = ''"),
    ({"mesh": "fsdp=²"}, "fsdp needs a whole number above 0"),
    ({"lr": 1}, "lr = 1: not a setting here; write learning_rate"),
    ({"num_train_epochs": 0}, "num_train_epochs = 0: must be above 0"),
    ({"num_train_epochs": 2, "max_steps": 50}, "num_train_epochs = 2.0: max_steps is 50 already; keep one"),
    (
        {"num_train_epochs": 2, "max_steps": 200},
        "max_steps is 200 already; keep one",
    ),  # the default, and yet given
    (
        {"dynamic_sampling": True, "advantage_estimator": "reinforce_plus_plus"},
        "learns from groups whose rewards",
    ),
    (
        {"dynamic_sampling": True, "multi_objective_aggregation": "normalize_then_sum"},
        "with normalize_then_sum groups whose sums are equal teach too",
    ),
    ({"chat_template_kwargs": "{a"}, "chat_template_kwargs = {a: not a mapping; write {name: value}"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs = [1]: must be a mapping"),
    ({"chat_template_kwargs": {"tokenize": True}}, "tokenize follows from the prompt; leave it out"),
    ({"dynamic_sampling": True, "max_rollouts_per_step": 1}, "max_rollouts_per_step = 1: dynamic_sampling"),
    ({"overlong_buffer": 256}, "overlong_buffer = 256: use less than max_completion_length, 256"),
    ({"loss_type": "cispo"}, "epsilon_high = None: cispo takes it as the largest weight"),
    ({"loss_type": "cispo", "epsilon_high": 0.28}, "all would be held at 0.28; write e.g. 5.0"),
    ({"delta": 1.2}, "delta = 1.2: must be above 1 + epsilon_high, 1.2; use e.g. 4"),
    ({"delta": 1.2, "epsilon_high": 0.28}, "must be above 1 + epsilon_high, 1.28"),
    ({"delta": 4, "loss_type": "sapo"}, "delta = 4.0: no effect, as loss_type sapo does not clip"),
    ({"loss_type": "reinforce", "importance_sampling_level": "sequence"}, "reinforce has no such ratio"),
    ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo has no such ratio"),
    ({"loss_type": "reinforce", "num_iterations": 2}, "num_iterations = 2: reinforce has no ratio"),
    ({"loss_type": "reinforce", "num_minibatches": 2}, "num_minibatches = 2: reinforce has no ratio"),
    ({"kl_in": "reward"}, "kl_in = reward: no effect, as beta is 0"),
    ({"use_bias_correction_kl": False, "beta": 1, "kl_in": "reward"}, "no effect, as kl_in is reward"),
    (
        {"advantage_estimator": "reinforce_plus_plus", "scale_rewards": "none"},
        "scale_rewards = none: reinforce_plus_plus always divides",
    ),
    ({"gradient_samples": 9}, "gradient_samples = 9: a group has num_generations = 8"),
    ({"gradient_samples": 3, "micro_batch_size": 16}, "24 rows do not divide by it; use 12 or 24"),
    ({"gradient_samples": 3, "num_minibatches": 5}, "24 rows (prompts_per_step 8 x gradient_samples 3)"),
    ({"use_adaptive_entropy": True, "entropy_coef": 2}, "entropy_coef = 2.0: must lie between"),
    (
        {"use_adaptive_entropy": True, "entropy_coef_min": 0.1},
        "entropy_coef = 0.0: must lie between entropy_coef_min, 0.1, and entropy_coef_max, 1.0",
    ),
    ({"top_entropy_quantile": 0}, "top_entropy_quantile = 0: must be above 0"),
    (
        {"sampler_correction": "token_mask", "sampler_correction_min": 5},
        "sampler_correction_min = 5.0: must be below sampler_correction_max, 3.0",
    ),
    (
        {"sampler_correction": "token_mask", "sampler_correction_max": None},
        "sampler_correction_max = None: token_mask needs a bound",
    ),
    (
        {"sampler_correction": "sequence_mask", "loss_type": "vespo"},
        "sampler_correction = sequence_mask: vespo multiplies those of tokens; use token_mask",
    ),
    (
        {"rollout_weights": "int8", "sampler_correction": "none"},
        "sampler_correction = none: with rollout_weights int8 another model is sampled from than is trained",
    ),
    (
        {"rollout_cache": "int8", "sampler_correction": "none"},
        "sampler_correction = none: with rollout_cache int8 another model is sampled from than is trained",
    ),
    (
        {"rollout_weights": "int8", "sampler_correction_max": None},
        "sampler_correction_max = None: token_truncate needs a bound",
    ),
]


@pytest.mark.parametrize(("given_values", "words"), BAD)
def test_a_bad_setting_is_refused_in_one_line_that_names_it(given_values, words):
    with pytest.raises(UserError) as fault:
        GRPOConfig(**given_values)
    assert words in str(fault.value)
    assert len(str(fault.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("cls", "given_values", "words"),
    [
        (SFTConfig, {}, "dataset: must be given"),
        (EvalConfig, {"model": None}, "model"),
        (SFTConfig, {"dataset": "x", "micro_batch_size": 5}, "16 rows do not divide by it; use 4 or 8"),
        (SFTConfig, {"dataset": "x", "prompts_per_step": 5}, "write rows_per_step"),
        (SFTConfig, {"dataset": "x", "num_train_epochs": 5, "max_steps": 9}, "keep one of them"),
        (SFTConfig, {"dataset": "x", "warmup_steps": 201}, "use at most max_steps, 200"),
        (EvalConfig, {"samples": 0, "greedy": False}, "samples = 0: greedy is off too"),
        (EvalConfig, {"samples": 4, "temperature": 0}, "samples = 4: greedy samples are all the same"),
        (EvalConfig, {"dataset": "x"}, "dataset = 'x': not a setting here; write task"),
        (GenerateConfig, {}, "prompt: must be given"),
        (GenerateConfig, {"prompt": "x", "prompts": "y"}, "prompts = 'y': prompt is 'x' already"),
        (GenerateConfig, {"prompt": "x", "prefill": "y", "chat": False}, "prefill = 'y': without chat"),
        (GenerateConfig, {"prompt": "x", "min_tokens": 300}, "min_tokens = 300"),
        (EvalConfig, {"min_tokens": 300}, "min_tokens = 300"),
        (GenerateConfig, {"prompt": "x", "samples": 2, "temperature": 0}, "set temperature above 0"),
        (
            GenerateConfig,
            {"prompt": "x", "chat": False, "system_prompt": "y"},
            "without chat it has no place",
        ),
    ],
)
def test_other_verbs_refuse_bad_settings_too(cls, given_values, words):
    with pytest.raises(UserError, match=re.escape(words)):
        cls(**{"model": "m", **given_values})


def test_every_problem_has_a_line_of_its_own():
    with pytest.raises(UserError) as fault:
        GRPOConfig(max_steps=0, top_p=2, seed=-1, beta=-1, min_p=2)
    named = [line.partition(" = ")[0] for line in str(fault.value).splitlines()]
    assert sorted(named) == ["beta", "max_steps", "min_p", "seed", "top_p"]


def test_settings_cannot_be_changed_in_place():
    with pytest.raises((UserError, ValueError)):
        GRPOConfig().max_steps = 3


def test_replace_checks_all_settings_again():
    config = GRPOConfig(max_steps=20)
    assert config.replace(seed=3) == GRPOConfig(max_steps=20, seed=3)
    with pytest.raises(UserError, match="warmup_steps = 30"):
        config.replace(warmup_steps=30)


def test_scale_rewards_accepts_the_booleans_of_trl():
    assert GRPOConfig(scale_rewards=True).scale_rewards == "group"
    assert GRPOConfig(scale_rewards=False).scale_rewards == "none"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (None, None),
        ("fsdp=8", {"data": 1, "fsdp": 8, "tensor": 1}),
        (" tensor=2 , data=4", {"data": 4, "fsdp": 1, "tensor": 2}),
    ],
)
def test_a_mesh_is_parsed_into_the_size_of_every_axis(text, sizes):
    assert parse_mesh(text) == sizes
    assert sizes is None or list(parse_mesh(text)) == ["data", "fsdp", "tensor"]


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_has_a_help_text_and_one_section(cls):
    undescribed = [name for name, field in cls.model_fields.items() if not (field.description or "").strip()]
    assert undescribed == []
    shown = [name for names in sections(cls).values() for name in names]
    assert sorted(shown) == sorted(cls.model_fields), "a field is in no section, or in two"


GDPO = {"multi_objective_aggregation": "normalize_then_sum"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_rewards", "batch"),
        ("advantage_estimator", "leave_one_out"),
        ("advantage_estimator", "reinforce_plus_plus"),
        ("kl_in", "reward"),
    ],
)
def test_normalize_then_sum_refuses_settings_that_contradict_it(name, value):
    with pytest.raises(UserError, match=f"{name} = {value}: multi_objective_aggregation normalize_then_sum"):
        GRPOConfig(beta=0.1, **GDPO, **{name: value})
    assert GRPOConfig(**GDPO).multi_objective_aggregation == "normalize_then_sum"


WITHOUT_EFFECT = {
    "epsilon": (0.1, {"loss_type": "sapo"}),
    "epsilon_high": (0.3, {"loss_type": "vespo"}),
    "delta": (4.0, {"loss_type": "reinforce"}),
    "sapo_temperature_pos": (2.0, {}),
    "sapo_temperature_neg": (2.0, {}),
    "vespo_k_pos": (1.0, {}),
    "vespo_lambda_pos": (1.0, {}),
    "vespo_k_neg": (1.0, {}),
    "vespo_lambda_neg": (1.0, {}),
    "importance_sampling_level": ("sequence", {"loss_type": "vespo"}),
    "kl_estimator": ("k1", {}),
    "kl_in": ("reward", {}),
    "use_bias_correction_kl": (False, {}),
    "ref_model_mixup_alpha": (0.5, {}),
    "ref_model_sync_steps": (8, {}),
    "entropy_coef_min": (0.1, {"entropy_coef": 0.1}),
    "entropy_coef_max": (2.0, {}),
    "entropy_coef_delta": (0.1, {}),
    "entropy_target": (1.0, {}),
    "sampler_correction_min": (0.1, {}),
    "sampler_correction_max": (2.0, {}),
    "max_rollouts_per_step": (8, {}),
    "adam_beta1": (0.8, {"optim": "sgd"}),
    "adam_beta2": (0.9, {"optim": "adafactor"}),
    "adam_epsilon": (1e-6, {"optim": "lion"}),
    "adam_moments": ("bfloat16", {"optim": "sgd"}),
}
NEEDED_BY = {name for names, _, _ in NEEDS for name in names}


@pytest.mark.parametrize("name", sorted(NEEDED_BY))
def test_a_setting_without_effect_is_refused(name):
    value, others = WITHOUT_EFFECT[name]
    with pytest.raises(UserError, match=rf"{name} = .*: no effect, as .*; leave it out"):
        GRPOConfig(**others, **{name: value})
    default = GRPOConfig.model_fields[name].get_default()
    assert GRPOConfig(**others, **{name: default}) == GRPOConfig(**others), "its default has no effect"


@pytest.mark.parametrize(
    "values",
    [
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo", "sapo_temperature_neg": 2.0},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "delta": 4},
        {"loss_type": "vespo", "sampler_correction": "token_truncate", "vespo_k_pos": 1.0},
        {"loss_type": "reinforce", "advantage_estimator": "leave_one_out", "scale_rewards": "none"},
        {"loss_type": "grpo", "importance_sampling_level": "trajectory", "num_iterations": 2},
        {"beta": 0.1, "kl_estimator": "k2", "kl_in": "reward"},
        {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False},
        {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 1.0},
        {
            "sampler_correction": "sequence_mask",
            "sampler_correction_max": None,
            "sampler_correction_min": 0.5,
        },
        {"gradient_samples": 2, "num_minibatches": 4, "micro_batch_size": 4},
        {"overlong_buffer": 8, **GDPO},
        {"dynamic_sampling": True, "max_rollouts_per_step": 8, "overlong_buffer": 64},
        {"advantage_estimator": "reinforce_plus_plus", "advantage_clip": 5, "top_entropy_quantile": 0.2},
        {"num_train_epochs": 0.5, "warmup_steps": 300},
    ],
)
def test_a_consistent_objective_is_accepted_and_survives_yaml(values, tmp_path):
    config = GRPOConfig(**values)
    assert load_settings(GRPOConfig, write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False}, "expected gradient is zero"),
        ({"importance_sampling_level": "sequence"}, "GSPO is loss_type: grpo"),
        ({"loss_type": "luspo"}, "importance_sampling_level: sequence"),
        ({"advantage_estimator": "leave_one_out"}, "advantages grow huge"),
        ({"dynamic_sampling": True, "loss_type": "reinforce"}, "no ratio that corrects"),
    ],
)
def test_a_valid_but_unusual_objective_brings_a_warning(values, words):
    (sentence,) = warnings_of(GRPOConfig(**values))
    assert words in sentence


def test_sampling_from_quantised_weights_is_corrected_by_default(tmp_path):
    """The default follows the sampler, an explicit value stays, and either survives the run's own file."""
    config = GRPOConfig(rollout_weights="int8")
    assert (config.sampler_correction, config.sampler_correction_max) == ("token_truncate", 3.0)
    assert GRPOConfig(rollout_cache="int8").sampler_correction == "token_truncate"
    assert GRPOConfig().sampler_correction == "none"
    asked = GRPOConfig(rollout_weights="int8", sampler_correction="sequence_mask")
    assert asked.sampler_correction == "sequence_mask"
    for one in (config, asked):
        assert load_settings(GRPOConfig, write(tmp_path, one.to_yaml())) == one == one.replace(max_steps=200)
    typed = load_settings(GRPOConfig, None, {"rollout_weights": "int8", "sampler_correction_max": "2"})
    assert typed == GRPOConfig(rollout_weights="int8", sampler_correction_max=2)


def test_settings_and_learner_offer_the_same_choices():
    from grpo_jax.learner import corrections, divergences, losses

    choices = lambda name: set(get_args(GRPOConfig.model_fields[name].annotation))
    assert set(losses.CLIPPED) == set(CLIPPED) < choices("loss_type")
    assert set(corrections.MODES) == choices("sampler_correction")
    assert set(divergences.ESTIMATORS) == choices("kl_estimator")


def test_sound_settings_bring_no_warning():
    assert warnings_of(GRPOConfig()) == []
    assert warnings_of(GRPOConfig(loss_type="grpo", importance_sampling_level="sequence")) == []
    assert warnings_of(GRPOConfig(beta=0.1, kl_estimator="k1")) == []
    assert warnings_of(GRPOConfig(advantage_estimator="leave_one_out", advantage_clip=5)) == []


def test_a_run_by_epochs_can_be_repeated_from_its_own_file(tmp_path):
    resolved = GRPOConfig(num_train_epochs=2).replace(num_train_epochs=None, max_steps=25)
    assert (
        load_settings(GRPOConfig, write(tmp_path, resolved.to_yaml())) == resolved == GRPOConfig(max_steps=25)
    )


def test_epochs_replace_the_steps_of_a_recipe_once_max_steps_is_taken_back(tmp_path):
    path = write(tmp_path, "max_steps: 116\n")
    with pytest.raises(UserError, match=r"keep one of them \(max_steps = -1 takes the other back\)"):
        load_settings(GRPOConfig, path, {"num_train_epochs": "1"})
    config = load_settings(GRPOConfig, path, {"num_train_epochs": "1", "max_steps": "-1"})
    assert config == GRPOConfig(num_train_epochs=1)


def test_a_mapping_is_read_from_the_command_line():
    given = {"chat_template_kwargs": "{enable_thinking: false, depth: 2}"}
    assert load_settings(GRPOConfig, None, given).chat_template_kwargs == {
        "enable_thinking": False,
        "depth": 2,
    }
    assert load_settings(GRPOConfig, None, {"chat_template_kwargs": "none"}).chat_template_kwargs is None


# ---- YAML and strings ----


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nlerning_rate: 3\n", ":2: lerning_rate: no such setting (did you mean 'learning_rate'?)"),
        ("# x\nmax_steps: many\n", ":2: max_steps = 'many': must be a whole number"),
        ("rewards: [a, b]\nreward_weights: [1]\n", ":2: reward_weights = [1.0]: give one"),
        ("reward_weights: [x]\n", ":1: reward_weights[0] = 'x'"),
        ("seed: 1\n\nnum_minibatches: 5\n", ":3: num_minibatches = 5"),
        ("mesh: fsdp\n", ":1: mesh = 'fsdp'"),
        ("seed: 1\nseed: 2\n", ":2: seed is given twice"),
        ("seed: [1\n", ":2: "),
        ("seed: 1\n\tmodel: x\n", ":2: "),
        ("- a\n- b\n", ":1: settings are lines of `name: value`"),
        ("just words\n", ":1: settings are lines"),
        ("seed: 1\n---\nseed: 2\n", "c.yaml:2: "),
        ("seed: 2020-13-45\n", "c.yaml: not YAML"),
        ("seed: !!python/object:os.system 1\n", "c.yaml:1: "),
    ],
)
def test_a_fault_in_yaml_names_file_and_line(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as fault:
        load_settings(GRPOConfig, path)
    assert str(fault.value).startswith(str(path))
    assert words in str(fault.value)
    assert len(str(fault.value).splitlines()) == 1


def test_a_fault_on_the_command_line_does_not_blame_the_file(tmp_path):
    path = write(tmp_path, "seed: 1\n")
    with pytest.raises(UserError) as fault:
        load_settings(GRPOConfig, path, {"seed": "x"})
    assert str(fault.value) == "seed = 'x': must be a whole number"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gsm8", "gsm8: no such recipe (did you mean 'gsm8k'?)"),
        ("nowhere.yaml", "nowhere.yaml: not found"),
        ("../secret", "no such recipe"),
    ],
)
def test_a_missing_settings_file_or_recipe_is_refused(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)):
        load_settings(GRPOConfig, source)


def test_a_folder_and_a_binary_file_are_refused_as_settings(tmp_path):
    with pytest.raises(UserError, match=re.escape("give e.g.")):
        load_settings(GRPOConfig, tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(GRPOConfig, tmp_path / "x.yaml")


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_settings(GRPOConfig, write(tmp_path, "# nothing\n")) == GRPOConfig()
    assert load_settings(GRPOConfig, None) == GRPOConfig()


def test_command_line_strings_become_typed_values_on_top_of_the_file(tmp_path):
    path = write(tmp_path, "learning_rate: 1e-5\nseed: 4\nepsilon_high: 0.3\n")
    given = {
        "seed": "7",
        "epsilon_high": "none",
        "rewards": "countdown, my.py:f",
        "reward_weights": "[1, 0.5]",
        "shuffle_dataset": "false",
        "mesh": "data=1,fsdp=8",
        "scale_rewards": "none",
        "output_dir": "None",
    }
    config = load_settings(GRPOConfig, path, given)
    assert (config.seed, config.learning_rate, config.epsilon_high) == (7, 1e-5, None)
    assert (config.rewards, config.reward_weights) == (["countdown", "my.py:f"], [1.0, 0.5])
    assert (config.shuffle_dataset, config.mesh, config.scale_rewards) == (False, "data=1,fsdp=8", "none")
    assert config.output_dir is None


def test_none_stays_a_word_where_a_field_is_not_optional():
    assert from_text(GRPOConfig, "model", "none") == "none"


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_and_says_what_to_expect(name):
    description = {recipe.name: recipe for recipe in recipes.describe()}[name]
    assert all(isinstance(value, str | bool) and value != "" for value in vars(description).values())
    if description.verb == "pipeline":
        assert load_pipeline(name).output_dir == f"runs/{name}"
        assert load_pipeline(name, tiny=True).steps
        with pytest.raises(UserError, match=f"run it with grpo-jax pipeline {name}"):
            load_settings(GRPOConfig, name)
    else:
        cls = {"train": GRPOConfig, "sft": SFTConfig}[description.verb]
        assert load_settings(cls, name).output_dir == f"runs/{name}"
        if description.tiny:
            assert load_settings(cls, name, tiny=True).model == "demo"


def test_tiny_overrides_the_file_and_the_command_line_overrides_tiny(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("max_steps: 9\nsave_steps: 3\ntiny:\n  max_steps: 2\n  model: small\n")
    load = lambda *given, **options: load_settings(GRPOConfig, str(file), *given, **options)
    assert (load().max_steps, load().model) == (9, "demo")
    small = load({"model": "mine"}, tiny=True)
    assert (small.max_steps, small.save_steps, small.model) == (2, 3, "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 9\n", "--tiny: .*own.yaml has no mapping `tiny`; leave the option out"),
        (
            "max_steps: 9\ntiny:\n  max_step: 2\n",
            r"own.yaml:2: tiny: max_step: no such setting \(did you mean",
        ),
        ("max_steps: 9\ntiny: {max_steps: 0}\n", "own.yaml:2: tiny: max_steps = 0: must be at least 1"),
    ],
)
def test_a_missing_or_bad_tiny_mapping_is_refused_with_its_file(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings(GRPOConfig, str(tmp_path / "own.yaml"), tiny=True)


def test_the_default_recipe_exists():
    assert "demo" in recipes.names()
    assert load_settings(GRPOConfig, "demo").model == "demo"


TEXT = strategies.text(strategies.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
FIELDS = {
    "model": TEXT,
    "dataset": TEXT,
    "system_prompt": strategies.none() | TEXT | strategies.just(""),
    "output_dir": strategies.none() | TEXT,
    "rewards": strategies.lists(TEXT, min_size=1, max_size=3, unique=True),
    "seed": strategies.integers(0, 2**32 - 1),
    "learning_rate": strategies.floats(1e-300, 1e300),
    "temperature": strategies.floats(1e-9, 100),
    "epsilon_high": strategies.none() | strategies.floats(0, 10),
    "scale_rewards": strategies.sampled_from(["group", "batch", "none"]),
    "mesh": strategies.sampled_from([None, "fsdp=8", "data=2,tensor=4"]),
    "shuffle_dataset": strategies.booleans(),
    "chat_template_kwargs": strategies.none()
    | strategies.dictionaries(TEXT, strategies.booleans(), max_size=2),
    "loss_type": strategies.sampled_from(["grpo", "bnpo", "dapo", "dr_grpo", "luspo"]),
    "advantage_clip": strategies.none() | strategies.floats(1e-6, 1e6),
    "num_train_epochs": strategies.none() | strategies.just(1.5),
}


@given(values=strategies.fixed_dictionaries({}, optional=FIELDS))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_settings_survive_yaml(tmp_path, values):
    config = GRPOConfig(**values)
    assert load_settings(GRPOConfig, write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize("cls", CONFIGS)
def test_defaults_of_every_verb_survive_yaml(cls, tmp_path):
    config = cls(**NEEDED.get(cls, {}))
    assert load_settings(cls, write(tmp_path, config.to_yaml())) == config


def test_a_layout_is_checked_before_anything_loads():
    assert load_settings(GRPOConfig, None, {"layout": "gsm8k"}).layout == "gsm8k"
    with pytest.raises(UserError, match=r"layout = 'gsm8': no such layout \(did you mean 'gsm8k'"):
        GRPOConfig(layout="gsm8")
    with pytest.raises(UserError, match="layout = 'gsm8k': prompt_column = 'text' says otherwise"):
        SFTConfig(model="m", dataset="d", layout="gsm8k", prompt_column="text")
    assert EvalConfig(model="m", layout="plain", prompt_column="text").prompt_column == "text"
