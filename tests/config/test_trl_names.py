"""TRL's settings: each is ours, is accepted for a reason, or is refused with advice."""

import dataclasses
import re
from typing import get_args

import pytest

from grpo_jax.config import GRPOConfig, SFTConfig, generation_kwargs, load_settings
from grpo_jax.config.optimizer_names import SAME, Optimizer
from grpo_jax.config.trl_fields import OTHERS, PREFIXES, RULES
from grpo_jax.errors import UserError

OURS = {*GRPOConfig.model_fields, *SFTConfig.model_fields}
ADVICE = {name: rule.advice for name, rule in RULES.items()} | OTHERS | PREFIXES


@pytest.fixture(scope="module")
def trl_fields():
    trl = pytest.importorskip("trl")
    return {field.name: field for field in dataclasses.fields(trl.GRPOConfig)}


def default_of(field):
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def test_every_field_of_trl_is_known(trl_fields):
    assert [name for name in trl_fields if name not in GRPOConfig.model_fields and name not in RULES] == []


def test_every_rule_is_for_a_field_of_trl_and_hides_no_setting(trl_fields):
    assert [name for name in RULES if name not in trl_fields] == []
    assert set(RULES) & set(GRPOConfig.model_fields) == set()


@pytest.mark.parametrize("name", ADVICE)
def test_advice_names_only_settings_that_exist(name):
    text = ADVICE[name]
    named = set(re.findall(r"\bwrite (\w+)", text)) | set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
    values = {"token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "on_log"}
    of_other_verbs = {"task", "split", "samples"}
    assert named - values - of_other_verbs <= OURS
    assert text.strip(), name


def test_trls_defaults_pass_silently_except_where_they_differ_here(trl_fields, capsys):
    """A script may spell out TRL's own defaults; only those that mean something else here are reported."""
    reported = set()
    for name in RULES.keys() & trl_fields.keys():
        try:
            GRPOConfig(**{name: default_of(trl_fields[name])})
        except UserError:
            reported.add(name)
        if capsys.readouterr().err:
            reported.add(name)
    assert reported == {
        "per_device_train_batch_size",
        "logging_steps",  # 10 there, each one here
        "log_completions",  # False there, every 10 steps here
        "vllm_importance_sampling_correction",  # True there, off here
        "vllm_importance_sampling_mode",
    }


@pytest.mark.parametrize(
    "values",
    [
        {"use_vllm": False, "report_to": "none", "remove_unused_columns": False, "logging_steps": 1},
        {"report_to": [], "optim": "adamw_torch", "log_completions": True, "eval_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 10},
        {"gradient_accumulation_steps": 1, "save_strategy": "steps", "deepspeed": None, "fsdp": ""},
        {"seed": 4, "data_seed": 4, "torch_compile": True, "resume_from_checkpoint": True},
        {"save_total_limit": None, "min_p": None, "top_k": None, "eval_steps": None},
        {"do_train": True, "full_determinism": True, "hub_model_id": None, "vllm_mode": "colocate"},
    ],
)
def test_settings_that_ask_for_what_is_done_anyway_pass_silently(values, capsys):
    GRPOConfig(**values)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": False}, {"dtype": "float32"}),
        ({"bf16": None}, {"dtype": "auto"}),
        ({"bf16": True, "dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1, "warmup_steps": 0}),
        ({"lr_scheduler_type": "constant_with_warmup"}, {"lr_scheduler_type": "constant"}),
        ({"max_steps": -1, "num_train_epochs": 2}, {"num_train_epochs": 2.0}),
        ({"save_total_limit": None}, {"save_total_limit": 0}),
        ({"scale_rewards": False}, {"scale_rewards": "none"}),
        (
            {
                "generation_kwargs": {
                    "max_new_tokens": 9,
                    "stop_strings": ["</a>"],
                    "top_p": 0.9,
                    "top_k": None,
                }
            },
            {"max_completion_length": 9, "stop_strings": ["</a>"], "top_p": 0.9, "top_k": 0},
        ),
        ({"generation_kwargs": "{repetition_penalty: 1.2, do_sample: true}"}, {"repetition_penalty": 1.2}),
        (
            {"generation_kwargs": {"bad_words_ids": [[3], [4]], "min_tokens": 2, "num_beams": 1}},
            {"banned_tokens": [3, 4], "min_tokens": 2},
        ),
        ({"generation_kwargs": {"top_k": 5}, "top_k": 5}, {"top_k": 5}),
        ({"optim": "adamw_torch_fused"}, {"optim": "adamw"}),
        ({"optim": "lion_32bit"}, {"optim": "lion"}),
    ],
)
def test_values_that_trl_spells_otherwise_are_translated(values, wanted):
    config = GRPOConfig(**values)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.replace(seed=3) == GRPOConfig(**values, seed=3), "a copy must not lose it"


def test_enumerations_of_transformers_are_understood():
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    config = GRPOConfig(lr_scheduler_type=SchedulerType.COSINE, optim=OptimizerNames.ADAMW_TORCH)
    assert config.lr_scheduler_type == "cosine"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataloader_num_workers": 4}, "dataloader_num_workers = 4: no effect here: "),
        ({"run_name": "first"}, "run_name = 'first': no effect here: metrics go to metrics.jsonl"),
        ({"logging_steps": 10}, "every step is written to metrics.jsonl"),
        ({"report_to": "wandb"}, "pass a callback with on_log"),
        ({"vllm_gpu_memory_utilization": 0.5}, "sampled in JAX, from the weights that are trained"),
        ({"log_completions": False}, "write log_completions_steps: 0"),
    ],
)
def test_a_setting_without_effect_is_dropped_with_a_line_on_stderr(values, words, capsys):
    assert GRPOConfig(**values) == GRPOConfig()
    out, err = capsys.readouterr()
    assert words in err
    assert (out, len(err.splitlines())) == ("", 1)


BATCHES = [
    (
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
        "prompts_per_step: 4 x devices (8 rows x 4 / 8 completions), micro_batch_size: 8 x devices",
    ),
    (
        {"per_device_train_batch_size": 4, "num_generations": 16},
        "prompts_per_step: 1/4 x devices (4 rows x 1 / 16 completions), micro_batch_size: 4 x devices",
    ),
    ({"gradient_accumulation_steps": 2}, "prompts_per_step: 2 x devices (8 rows x 2 / 8 completions)"),
    (
        {"per_device_train_batch_size": 8, "steps_per_generation": 8, "gradient_accumulation_steps": 2},
        "prompts_per_step: 8 x devices (8 rows x 8 / 8 completions), micro_batch_size: 8 x devices, "
        "num_minibatches: 4",
    ),
    (
        {
            "steps_per_generation": 1,
            "gradient_accumulation_steps": 4,
        },  # several rollouts, by the same weights
        "prompts_per_step: 4 x devices (8 rows x 4 / 8 completions), micro_batch_size: 8 x devices",
    ),
    (
        {"generation_batch_size": 64, "per_device_train_batch_size": 4},
        "prompts_per_step: 8 (64 rows / 8 completions), micro_batch_size: 4 x devices, "
        "num_minibatches: 16 / devices",
    ),
    ({"per_device_train_batch_size": "x"}, "write prompts_per_step and num_generations"),
]


@pytest.mark.parametrize(("values", "words"), BATCHES)
def test_trls_batch_sizes_are_refused_with_the_values_to_write(values, words):
    with pytest.raises(UserError) as fault:
        GRPOConfig(**values)
    assert words in str(fault.value)
    assert ("num_minibatches" in str(fault.value)) == ("num_minibatches" in words)
    assert len(str(fault.value).splitlines()) == 1, "one sentence answers them all"


REFUSED = [
    ({"use_vllm": True}, "use_vllm = True: not a setting here; leave it out: completions are sampled in"),
    ({"fp16": True}, "write dtype: bfloat16 or float32"),
    ({"bf16": True, "dtype": "float32"}, "bf16 = True: not a setting here; write dtype"),
    ({"deepspeed": "zero3.json"}, "write mesh"),
    ({"fsdp": "full_shard"}, "write mesh"),
    ({"num_generations_eval": 4}, "write eval_samples"),
    ({"vllm_importance_sampling_mode": "token_mask"}, "write sampler_correction: token_truncate, token_mask"),
    ({"vllm_importance_sampling_clip_max": 2.0}, "write sampler_correction_max"),
    ({"save_strategy": "epoch"}, "write save_steps"),
    ({"eval_strategy": "epoch"}, "write eval_steps"),
    ({"eval_strategy": "no", "eval_steps": 5}, "write eval_steps"),
    ({"eval_strategy": "steps"}, "write eval_steps"),
    ({"push_to_hub": True}, "grpo-jax does not upload"),
    ({"resume_from_checkpoint": "a/checkpoint-5"}, "the same command on the same output_dir resumes"),
    (
        {"optim": "adamw_8bit"},
        "optim = adamw_8bit: not offered; the nearest is adamw with adam_moments: bfloat16",
    ),
    ({"optim": "paged_lion_8bit"}, "the nearest is lion with adam_moments: bfloat16"),
    ({"optim": "galore_adamw_layerwise"}, "the nearest is adafactor"),
    ({"optim": "rmsprop"}, "the nearest is adamw"),
    ({"optim": "adamx"}, "optim = 'adamx': must be 'adamw', 'adafactor', 'lion', 'muon' or 'sgd'"),
    ({"lora_dropout": 0.1}, "lora_dropout = 0.1: only adapters have dropout; set lora_r"),
    ({"modules_to_save": ["lm_head"]}, "embedding and head stay frozen beside adapters"),
    ({"lora_r": 4, "lora_target_modules": ["lm_head"]}, "lm_head has no adapter here"),
    ({"optim_args": "beta1=0.8"}, "write adam_beta1"),
    ({"sync_ref_model": True}, "no divergence is computed; set beta above 0"),
    (
        {"sync_ref_model": True, "beta": 0.1, "lora_r": 4},
        "a mixture of adapters is no mixture of their models",
    ),
    ({"sync_ref_model": True, "beta": 0.1, "reference_memory": "host"}, "set reference_memory to device"),
    (
        {"generation_kwargs": {"num_beams": 4, "top_k": 5}},
        "for num_beams: completions are drawn one token at a time",
    ),
    (
        {"generation_kwargs": {"no_repeat_ngram_size": 3}},
        "for no_repeat_ngram_size: write repetition_penalty",
    ),
    ({"generation_kwargs": {"bad_words_ids": [[3, 4]]}}, "for bad_words_ids: write banned_tokens"),
    ({"generation_kwargs": {"of_another_version": 1}}, "and no other sampling settings"),
    ({"generation_kwargs": {"top_k": 5}, "top_k": 4}, "top_k = 5 beside top_k = 4: keep one of them"),
    ({"generation_kwargs": 5}, "write a mapping of sampling options"),
    ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: must be above 0"),
    ({"seed": 1, "data_seed": 2}, "write seed"),
    ({"model_init_kwargs": {"dtype": "float16"}}, "write dtype"),
    ({"max_steps": -1}, "max_steps = -1: must be at least 1"),
    ({"vllm_of_another_version": 1}, "completions are sampled in JAX, from the weights that are trained"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED)
def test_a_value_that_would_compute_something_else_is_refused(values, words):
    with pytest.raises(UserError) as fault:
        GRPOConfig(**values)
    assert words in str(fault.value)
    assert len(str(fault.value).splitlines()) == 1


def test_every_fault_is_reported():
    with pytest.raises(UserError) as fault:
        GRPOConfig(use_vllm=True, per_device_train_batch_size=8, epsilon=3)
    assert len(str(fault.value).splitlines()) == 3


def test_options_of_generation_are_those_of_transformers_or_vllm():
    transformers = pytest.importorskip("transformers")
    of_vllm = {
        "bad_words",
        "frequency_penalty",
        "ignore_eos",
        "max_tokens",
        "min_tokens",
        "n",
        "presence_penalty",
    }
    of_vllm |= {"seed", "stop", "stop_token_ids"}
    known = {*vars(transformers.GenerationConfig()), "disable_compile"} | of_vllm
    assert {*generation_kwargs.OURS, *generation_kwargs.OFF, *generation_kwargs.NEAREST} <= known
    assert set(generation_kwargs.OURS.values()) <= set(GRPOConfig.model_fields)
    assert set(generation_kwargs.OFF) - {"use_cache", "disable_compile", "remove_invalid_values"} <= set(
        generation_kwargs.NEAREST
    )


def test_every_optimizer_of_transformers_is_ours_or_has_a_nearest():
    training_args = pytest.importorskip("transformers.training_args")
    for name in training_args.OptimizerNames:
        if SAME.get(name.value, name.value) in get_args(Optimizer):
            assert GRPOConfig(optim=name.value).optim in get_args(Optimizer)
        else:
            with pytest.raises(UserError, match="not offered; the nearest is"):
                GRPOConfig(optim=name.value)
    assert GRPOConfig(optim=training_args.OptimizerNames.LION).optim == "lion"


def test_yaml_is_translated_too(tmp_path, capsys):
    path = tmp_path / "trl.yaml"
    path.write_text("bf16: true\nlogging_steps: 5\nreport_to: none\n")
    assert load_settings(GRPOConfig, path).dtype == "bfloat16"
    assert len(capsys.readouterr().err.splitlines()) == 1
    path.write_text("seed: 1\ndeepspeed: zero3.json\n")
    with pytest.raises(
        UserError, match=r"trl.yaml:2: deepspeed = 'zero3.json': not a setting here; write mesh"
    ):
        load_settings(GRPOConfig, path)


def test_advice_also_names_the_setting_of_fine_tuning():
    with pytest.raises(UserError, match=r"\(sft: rows_per_step\)"):
        SFTConfig(model="m", dataset="d", per_device_train_batch_size=8)
