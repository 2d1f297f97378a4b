"""The parser of TRL's scripts, with our settings among its classes."""

import dataclasses
import subprocess
import sys

import pytest

from grpo_jax import (
    GRPOConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    UserError,
    get_peft_config,
    get_quantization_config,
)
from grpo_jax.config.trl_parser import TWICE
from grpo_jax.training.adapter_arguments import adapters_of

CLASSES = (ScriptArguments, GRPOConfig, ModelConfig)


def parsed(words, classes=CLASSES, **options):
    return TrlParser(classes).parse_args_and_config(words.split(), **options)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    text = (
        "env: {A_TEST_VARIABLE: 3}\ndataset_name: some/rows\nlearning_rate: 3.0e-6\nlora_r: 4\nmax_steps: 7\n"
    )
    path.write_text(text + "reward_weights: [1.0, 0.5]\n")
    return path


def test_each_class_gets_its_own_values_in_the_order_of_the_classes():
    script, settings, model = parsed(
        "--dataset_name a/b --learning_rate 1e-5 --reward_weights 1 0.5 --gradient_checkpointing "
        "--model_name_or_path m --use_peft --lora_r 8 --dtype bfloat16 --max-steps -1 --bf16 True"
    )
    assert (script.dataset_name, model.model_name_or_path, model.use_peft) == ("a/b", "m", True)
    assert (settings.learning_rate, settings.reward_weights) == (1e-5, [1.0, 0.5])
    assert (settings.dtype, settings.num_train_epochs) == ("bfloat16", 3.0)
    assert (model.lora_r, settings.lora_r, model.dtype) == (8, 0, "bfloat16"), (
        "names of both are the dataclass's"
    )


def test_the_command_line_wins_over_the_file(file, monkeypatch):
    monkeypatch.setenv("A_TEST_VARIABLE", "1")
    script, settings, model = parsed(f"--config {file} --learning_rate 1e-5 --lora_r 2")
    assert (script.dataset_name, settings.max_steps, settings.reward_weights) == ("some/rows", 7, [1.0, 0.5])
    assert (settings.learning_rate, model.lora_r) == (1e-5, 2)
    import os

    assert os.environ["A_TEST_VARIABLE"] == "3"


def test_dataclasses_of_the_script_and_a_subclass_of_ours_are_read(file):
    @dataclasses.dataclass
    class Mine(ScriptArguments):
        reward_funcs: list[str] | None = None
        must: int = dataclasses.field(kw_only=True)

    file.write_text("must: 5\nreward_funcs: [a, b]\n")
    mine, _ = parsed(f"--config {file}", (Mine, GRPOConfig))
    assert (mine.must, mine.reward_funcs, mine.dataset_train_split) == (5, ["a", "b"], "train")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lerning_rate 1", "lerning_rate: no such setting (did you mean 'learning_rate'?)"),
        ("--model_nam_or_path x", "(did you mean 'model_name_or_path'?)"),
        ("--use_vllm", "use_vllm = True: not a setting here; leave it out"),
        ("--temperature -1", "temperature = '-1': must be at least 0"),
        ("lonely", "lonely: belongs to no option"),
        ("--model a --model_name_or_path b", "model_name_or_path: model says the same; keep one of them"),
        ("--per_device_train_batch_size 8 --prompts_per_step 4", "keep one of them"),
        ("--config nowhere.yaml", "nowhere.yaml: not found"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_wrong_value_of_the_file_is_named_with_its_line(file, capsys):
    file.write_text("max_steps: 3\nlerning_rate: 1\n")
    with pytest.raises(SystemExit):
        parsed(f"--config {file}")
    assert f"{file}:2: lerning_rate: no such setting" in capsys.readouterr().err


def test_unknown_words_are_returned_or_ignored_where_the_script_asks_for_that(file, capsys):
    file.write_text("strange: 1\n")
    *_, rest = parsed(f"--config {file} --other 2", return_remaining_strings=True)
    assert rest == ["--strange", "1", "--other", "2"]
    assert len(parsed(f"--config {file}", fail_with_unknown_args=False)) == 3
    with pytest.raises(SystemExit):  # on the command line they are wrong in any case, as in TRL
        parsed("--other 2", fail_with_unknown_args=False)


@pytest.mark.parametrize(("ours", "theirs"), [(ours, each) for ours, all in TWICE for each in all])
def test_one_thing_in_both_languages_is_refused(ours, theirs, capsys):
    with pytest.raises(SystemExit):
        parsed(f"--{ours} x --{theirs} true")
    assert f"{theirs}: {ours} says the same" in capsys.readouterr().err


def test_help_tells_of_settings_and_of_dataclasses(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--model_name_or_path" in shown
    assert "Number of completions sampled for each prompt" in shown


def test_the_adapters_of_a_script_are_the_trainers():
    (model,) = parsed(
        "--use_peft --lora_r 4 --lora_alpha 8 --lora_target_modules all-linear --load_in_4bit", ModelConfig
    )
    asked = adapters_of(get_peft_config(model), get_quantization_config(model))
    assert (asked["lora_r"], asked["lora_alpha"], asked["base_weights"]) == (4, 8, "nf4")
    assert adapters_of(get_peft_config(ModelConfig()), get_quantization_config(ModelConfig())) == {}


def test_adapters_need_no_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    given = get_peft_config(ModelConfig(use_peft=True))
    assert isinstance(given, dict)
    assert adapters_of(given)["lora_r"] == 16


def test_every_argument_of_trls_classes_is_known_with_its_default():
    trl = pytest.importorskip("trl")
    for ours, theirs in ((ScriptArguments, trl.ScriptArguments), (ModelConfig, trl.ModelConfig)):
        assert defaults_of(ours) == defaults_of(theirs)


def defaults_of(cls):
    return {field.name: field.default for field in dataclasses.fields(cls)}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"dtype": "float32", "revision": "main", "attn_implementation": "flash_attention_2"}, "auto"),
        ({"torch_dtype": "bfloat16", "device_map": {"": 0}, "trust_remote_code": False}, "bfloat16"),
        ({}, "auto"),
    ],
)
def test_the_models_own_arguments_are_taken_where_they_mean_the_same(given, dtype):
    settings = GRPOConfig()
    settings.model_init_kwargs = given
    assert settings.dtype == dtype


def test_a_model_argument_without_counterpart_is_refused():
    for given in ({"revision": "v2"}, {"dtype": "float16"}, {"hidden_size": 3}):
        with pytest.raises(UserError, match="model_init_kwargs"):
            GRPOConfig(model_init_kwargs=given)


def test_settings_that_only_trl_has_can_be_read():
    settings = GRPOConfig()
    assert (settings.push_to_hub, settings.trust_remote_code) == (False, False)
    assert not hasattr(settings, "no_such_setting")


def test_importing_the_package_loads_neither_transformers_nor_peft():
    code = (
        "import sys, grpo_jax; grpo_jax.TrlParser, grpo_jax.ModelConfig\n"
        "print({'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
