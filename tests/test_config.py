"""Settings: what is wrong is refused in one line that names field, value and mend; what is right survives."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from grpo_jax import recipes
from grpo_jax.config import EvalConfig, GenerateConfig, GRPOConfig, SFTConfig, load_settings, parse_mesh
from grpo_jax.errors import UserError
from grpo_jax.settings_io import TRANSLATED_PREFIXES, TRANSLATIONS, from_text, sections

CONFIGS = [GRPOConfig, SFTConfig, EvalConfig, GenerateConfig]
NEEDED = {
    SFTConfig: {"model": "m", "dataset": "rows.jsonl"},
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
    ({"shuffle": "maybe"}, "shuffle = 'maybe': must be true or false"),
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
    ({"eval_samples": 4}, "eval_samples = 4: greedy samples are all the same; set eval_temperature above 0"),
    ({"mesh": "fdsp=8"}, "mesh = 'fdsp=8': no axis 'fdsp' (did you mean 'fsdp'?)"),
    ({"mesh": "fsdp=0"}, "fsdp needs a whole number above 0"),
    ({"mesh": "fsdp=2,fsdp=4"}, "fsdp is given twice"),
    ({"mesh": ""}, "mesh = ''"),
    ({"mesh": "fsdp=²"}, "fsdp needs a whole number above 0"),
    ({"per_device_train_batch_size": 4}, "write prompts_per_step and num_generations"),
    ({"gradient_accumulation_steps": 4}, "write micro_batch_size"),
    ({"steps_per_generation": 4}, "write num_minibatches"),
    ({"bf16": True}, "write dtype: bfloat16"),
    ({"vllm_gpu_memory_utilization": 0.5}, "completions are sampled by the same JAX program"),
    ({"num_train_epochs": 1}, "write max_steps"),
]


@pytest.mark.parametrize(("given_values", "words"), BAD)
def test_a_bad_setting_is_refused_in_words(given_values, words):
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
        (SFTConfig, {"dataset": "x", "warmup_steps": 201}, "use at most max_steps, 200"),
        (EvalConfig, {"samples": 0, "greedy": False}, "samples = 0: greedy is off too"),
        (EvalConfig, {"samples": 4, "temperature": 0}, "samples = 4: greedy samples are all the same"),
        (EvalConfig, {"dataset": "x"}, "dataset: not a setting here; write task"),
        (GenerateConfig, {}, "prompt: must be given"),
        (GenerateConfig, {"prompt": "x", "samples": 2, "temperature": 0}, "set temperature above 0"),
        (
            GenerateConfig,
            {"prompt": "x", "chat": False, "system_prompt": "y"},
            "without chat it has no place",
        ),
    ],
)
def test_the_other_verbs_refuse_too(cls, given_values, words):
    with pytest.raises(UserError, match=re.escape(words)):
        cls(**{"model": "m", **given_values})


def test_many_problems_stay_a_few_lines():
    with pytest.raises(UserError) as fault:
        GRPOConfig(max_steps=0, top_p=2, seed=-1, beta=-1, min_p=2)
    assert str(fault.value).splitlines()[-1] == "... and 2 more"
    assert len(str(fault.value).splitlines()) == 4


def test_settings_cannot_be_changed_in_place():
    with pytest.raises((UserError, ValueError)):
        GRPOConfig().max_steps = 3


def test_replace_checks_the_whole():
    config = GRPOConfig(max_steps=20)
    assert config.replace(seed=3) == GRPOConfig(max_steps=20, seed=3)
    with pytest.raises(UserError, match="warmup_steps = 30"):
        config.replace(warmup_steps=30)


def test_trl_booleans_for_scale_rewards():
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
def test_mesh_text(text, sizes):
    assert parse_mesh(text) == sizes
    assert sizes is None or list(parse_mesh(text)) == ["data", "fsdp", "tensor"]


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_says_what_it_is(cls):
    undescribed = [name for name, field in cls.model_fields.items() if not (field.description or "").strip()]
    assert undescribed == []
    shown = [name for names in sections(cls).values() for name in names]
    assert sorted(shown) == sorted(cls.model_fields), "a field is in no section, or in two"


def test_translations_do_not_hide_a_setting():
    assert not set(TRANSLATIONS) & set.intersection(*(set(cls.model_fields) for cls in CONFIGS))
    trl_only = {name for name in GRPOConfig.model_fields if name.startswith(tuple(TRANSLATED_PREFIXES))}
    assert trl_only == set()


@pytest.mark.parametrize("text", TRANSLATIONS.values())
def test_translations_name_settings_that_exist(text):
    named = re.match(r"write (\w+)", text)
    assert named is None or any(named[1] in cls.model_fields for cls in CONFIGS)


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
def test_a_source_that_is_not_there(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)):
        load_settings(GRPOConfig, source)


def test_a_folder_and_a_binary_file_are_no_settings(tmp_path):
    with pytest.raises(UserError, match=re.escape("give e.g.")):
        load_settings(GRPOConfig, tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(GRPOConfig, tmp_path / "x.yaml")


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_settings(GRPOConfig, write(tmp_path, "# nothing\n")) == GRPOConfig()
    assert load_settings(GRPOConfig, None) == GRPOConfig()


def test_command_line_strings_become_typed_values_on_top_of_the_file(tmp_path):
    path = write(tmp_path, "learning_rate: 1e-5\nseed: 4\nepsilon_high: 0.3\n")
    given = {
        "seed": "7",
        "epsilon_high": "none",
        "rewards": "countdown, my.py:f",
        "reward_weights": "[1, 0.5]",
        "shuffle": "false",
        "mesh": "data=1,fsdp=8",
        "scale_rewards": "none",
        "output_dir": "None",
    }
    config = load_settings(GRPOConfig, path, given)
    assert (config.seed, config.learning_rate, config.epsilon_high) == (7, 1e-5, None)
    assert (config.rewards, config.reward_weights) == (["countdown", "my.py:f"], [1.0, 0.5])
    assert (config.shuffle, config.mesh, config.scale_rewards) == (False, "data=1,fsdp=8", "none")
    assert config.output_dir is None


def test_none_stays_a_word_where_a_field_is_not_optional():
    assert from_text(GRPOConfig, "model", "none") == "none"


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_and_says_what_to_expect(name):
    assert load_settings(GRPOConfig, name).output_dir == f"runs/{name}"
    account = {recipe.name: recipe for recipe in recipes.describe()}[name]
    assert all(isinstance(value, str) and value for value in vars(account).values())


def test_the_default_recipe_is_there():
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
    "max_steps": strategies.integers(1, 10**6),
    "learning_rate": strategies.floats(1e-300, 1e300),
    "temperature": strategies.floats(1e-9, 100),
    "epsilon_high": strategies.none() | strategies.floats(0, 10),
    "scale_rewards": strategies.sampled_from(["group", "batch", "none"]),
    "mesh": strategies.sampled_from([None, "fsdp=8", "data=2,tensor=4"]),
    "shuffle": strategies.booleans(),
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
