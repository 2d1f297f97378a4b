"""A family of models is a row: another one loads, computes, trains and exports through the same functions."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.errors import UserError
from grpo_jax.models.families import FAMILIES, rows
from grpo_jax.models.hf import load_config, load_params, save_model
from grpo_jax.models.transformer import abstract_params, head_logits, hidden_states


def renamed(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def second(monkeypatch):
    """A family `second`, which differs from Qwen2 in its names only."""
    row = dataclasses.replace(FAMILIES["qwen2"], language_model="SecondForCausalLM")
    monkeypatch.setitem(FAMILIES, "second", row)


@pytest.fixture
def second_model(second, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "second")
    return renamed(tmp_path / "second", model_type="second", architectures=["SecondForCausalLM"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_table_has_every_parameter_of_its_models(tiny, name, tied):
    cfg = dataclasses.replace(tiny, model_type=name, tie_word_embeddings=tied)
    leaves = jax.tree_util.tree_flatten_with_path(abstract_params(cfg))[0]
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert {row.path: row.shape(cfg) for row in rows(cfg)} == shapes


def test_a_second_family_is_loaded_and_exported_bit_by_bit(second_model, tmp_path):
    cfg = load_config(second_model)
    assert cfg.model_type == "second"
    params = load_params(second_model, cfg)
    save_model(tmp_path / "copy", cfg, params, source=second_model)
    save_model(tmp_path / "anew", cfg, params)
    for out in (tmp_path / "copy", tmp_path / "anew"):
        assert load_config(out) == cfg
        assert (out / "model.safetensors").read_bytes() == (second_model / "model.safetensors").read_bytes()
    names = json.loads((tmp_path / "anew" / "config.json").read_text())
    assert (names["model_type"], names["architectures"]) == ("second", ["SecondForCausalLM"])


def test_a_second_family_is_trained_and_exported(second_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "say a", "completion": "aa"}\n' * 3)
    words = {"model": second_model, "dataset": tmp_path / "rows.jsonl", "output_dir": tmp_path / "run"}
    sizes = {"max_steps": 1, "rows_per_step": 8, "max_length": 32}
    assert main(["sft", *(f"--{name}={value}" for name, value in (words | sizes).items())]) == 0
    assert load_config(tmp_path / "run" / "hf") == load_config(second_model)


@pytest.fixture
def llama(monkeypatch):
    """Llama without its own rope scaling: Qwen2 without biases."""
    qwen2 = FAMILIES["qwen2"]
    monkeypatch.setitem(
        FAMILIES,
        "llama",
        dataclasses.replace(
            qwen2,
            qkv_bias=False,
            table=[row for row in qwen2.table if row.path[-1] != "bias"],
            read_config=lambda raw, path: qwen2.read_config(raw | {"attention_bias": None}, path),
        ),
    )


def test_logits_of_a_family_without_biases_equal_transformers(llama, tiny, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)).eval()
    model.save_pretrained(tmp_path / "llama")
    cfg = load_config(tmp_path / "llama")
    params = load_params(tmp_path / "llama", cfg)
    tokens = np.arange(24).reshape(2, 12) * 5 % 64
    hidden, _ = hidden_states(cfg, params, tokens, np.broadcast_to(np.arange(12), (2, 12)))
    expected = model(torch.from_numpy(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(head_logits(cfg, params, hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", ["mamba", None, ["qwen2"], {}])
def test_an_unknown_family_is_refused_with_the_supported_ones(tiny_model, tmp_path, value):
    folder = renamed(shutil.copytree(tiny_model, tmp_path / "model"), model_type=value)
    with pytest.raises(UserError) as caught:
        load_config(folder)
    assert f"model_type {value!r} is not supported; the supported ones are 'qwen2'" in str(caught.value)
