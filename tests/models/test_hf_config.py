"""config.json and generation_config.json: both layouts are read, and unsupported settings are refused."""

import json

import pytest

from grpo_jax.errors import UserError
from grpo_jax.models.hf import PUBLISHED, ModelConfig, YarnConfig, load_config, load_eos_ids, load_pad_id
from grpo_jax.models.hf_config import published_layout

# Qwen2.5-0.5B's published file, without the keys that say nothing of the mathematics.
PUBLISHED_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.fixture
def write(tmp_path):
    def write(name="config.json", drop=(), **changes):
        raw = {k: v for k, v in (PUBLISHED_05B | changes).items() if k not in drop}
        (tmp_path / name).write_text(json.dumps(raw))
        return tmp_path

    return write


def test_published_layout_reads_as_the_shape_in_our_table(write):
    assert load_config(write()) == PUBLISHED["0.5b"]


def test_transformers_5_layout_reads_the_same(write):
    rope = {"rope_theta": 1000000.0, "rope_type": "default"}
    folder = write(
        drop=("rope_theta", "torch_dtype"),
        rope_parameters=rope,
        dtype="bfloat16",
        sliding_window=None,
        layer_types=["full_attention"] * 24,
    )
    assert load_config(folder) == PUBLISHED["0.5b"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, YarnConfig(4.0, 32768)),
        ({"rope_type": "yarn", "beta_fast": 16}, YarnConfig(4.0, 32768, beta_fast=16.0)),
        ({"attention_factor": 1.0}, YarnConfig(4.0, 32768, attention_factor=1.0)),
        ({"beta_slow": None, "truncate": True}, YarnConfig(4.0, 32768)),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, YarnConfig(4.0, 32768, attention_factor=1.0)),
    ],
)
def test_yarn_is_read_in_every_spelling(write, extra, expected):
    assert load_config(write(rope_scaling=YARN | extra)).rope_scaling == expected


def test_transformers_5_yarn_takes_its_own_theta(write):
    config = load_config(write(drop=("rope_theta",), rope_parameters=YARN | {"rope_theta": 5e5}))
    assert (config.rope_theta, config.rope_scaling) == (5e5, YarnConfig(4.0, 32768))


def test_an_explicit_head_dim_is_kept_and_null_kv_heads_mean_all(write):
    config = load_config(write(head_dim=128, num_key_value_heads=None))
    assert (config.head_dim, config.num_kv_heads) == (128, 14)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama"}, "model_type"),
        ({"attention_bias": False}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"use_mrope": True}, "use_mrope"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        ({"rope_scaling": {"type": "yarn"}}, "factor"),
        ({"rope_scaling": YARN | {"factor": "4"}}, "factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_attention_heads": 15, "num_key_value_heads": 5}, "hidden_size 896"),
        ({"head_dim": 63}, "head_dim 63"),
        ({"hidden_size": "896"}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_unsupported_settings_are_refused_by_name(write, changes, named):
    with pytest.raises(UserError, match=named):
        load_config(write(**changes))


def test_every_missing_key_is_named(write):
    with pytest.raises(UserError, match="num_key_value_heads, rope_theta"):
        load_config(write(drop=("num_key_value_heads", "rope_theta")))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        load_config(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    for text in ('{"model_type": ', "[]", "\x00"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            load_config(tmp_path)


@pytest.mark.parametrize("yarn", [None, YarnConfig(4.0, 32768), YarnConfig(2.0, 64, attention_factor=1.1)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_our_own_config_json_reads_back_the_same(tmp_path, name, yarn):
    config = ModelConfig(**(vars(PUBLISHED[name]) | {"rope_scaling": yarn}))
    (tmp_path / "config.json").write_text(json.dumps(published_layout(config, "bfloat16")))
    assert load_config(tmp_path) == config


def test_published_shapes_have_the_published_parameter_counts():
    """Billions, from the model cards; a wrong digit in the table moves them."""
    from grpo_jax.models.families import rows

    def count(cfg):
        import math

        return sum(math.prod(row.shape(cfg)) for row in rows(cfg)) / 1e9

    cards = {"0.5b": 0.49, "1.5b": 1.54, "3b": 3.09, "7b": 7.61, "14b": 14.7, "32b": 32.5, "72b": 72.7}
    assert {name: count(cfg) for name, cfg in PUBLISHED.items()} == pytest.approx(cards, rel=0.01)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [151645, 151643]}, (151645, 151643)),
        ({"eos_token_id": 151645}, (151645,)),
        ({"eos_token_id": None}, (151643,)),
        (None, (151643,)),
    ],
)
def test_every_end_of_sequence_id_is_read(write, generation, expected):
    folder = write()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load_eos_ids(folder) == expected


def test_special_ids_may_be_absent_but_must_be_integers(write):
    assert load_eos_ids(write(drop=("eos_token_id",))) == ()
    assert load_pad_id(write()) is None
    assert load_pad_id(write(pad_token_id=151643)) == 151643
    for read, key in ((load_eos_ids, "eos_token_id"), (load_pad_id, "pad_token_id")):
        with pytest.raises(UserError, match=key):
            read(write(**{key: "<|im_end|>"}))
