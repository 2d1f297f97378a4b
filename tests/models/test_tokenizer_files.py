"""All files that make a tokenizer go with the weights."""

import fnmatch

import pytest
from transformers import AutoTokenizer

from grpo_jax.models.hf import load_config, load_params, save_model
from grpo_jax.models.hub import WANTED
from grpo_jax.models.tokenizer_files import tokenizer_files, write_tokenizer

TEMPLATES = {"default": "D{{ messages[0].content }}", "rag": "R{{ documents }}", "tool_use": "T{{ tools }}"}


@pytest.fixture
def rich(tiny_model, tmp_path):
    """A model folder whose tokenizer has several templates, added tokens and special tokens."""
    cfg = load_config(tiny_model)
    save_model(tmp_path / "rich", cfg, load_params(tiny_model, cfg), tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<tool>", "<other>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = dict(TEMPLATES)
    tokenizer.save_pretrained(tmp_path / "rich")
    return tmp_path / "rich"


def _known(folder):
    """What a tokenizer does, as far as its files decide."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    says = tokenizer("a <tool> b<|turn|>")["input_ids"]
    return (
        tokenizer.chat_template,
        tokenizer.get_vocab(),
        tokenizer.special_tokens_map,
        tokenizer.added_tokens_decoder,
        says,
    )


def test_a_tokenizer_is_the_same_after_an_export(rich, tmp_path):
    cfg = load_config(rich)
    save_model(tmp_path / "out", cfg, load_params(rich, cfg), rich)
    assert _known(tmp_path / "out") == _known(rich)
    assert _known(rich)[0] == TEMPLATES
    for file in tokenizer_files(rich):
        assert (tmp_path / "out" / file).read_bytes() == (rich / file).read_bytes()


def test_a_tokenizer_that_is_given_takes_the_place_of_the_sources(rich, tiny_model, tmp_path):
    cfg = load_config(tiny_model)
    params = load_params(tiny_model, cfg)
    save_model(tmp_path / "folder", cfg, params, tiny_model, tokenizer=rich)
    save_model(tmp_path / "object", cfg, params, tiny_model, tokenizer=AutoTokenizer.from_pretrained(rich))
    assert _known(tmp_path / "folder") == _known(tmp_path / "object") == _known(rich)


def test_every_file_that_transformers_writes_for_a_tokenizer_is_found(rich, tmp_path):
    AutoTokenizer.from_pretrained(rich).save_pretrained(tmp_path / "alone")
    written = {file.relative_to(tmp_path / "alone") for file in (tmp_path / "alone").rglob("*.*")}
    assert set(tokenizer_files(tmp_path / "alone")) == written
    write_tokenizer(tmp_path / "alone", tmp_path / "copy")
    assert _known(tmp_path / "copy") == _known(rich)


def test_every_file_of_a_tokenizer_is_downloaded_with_a_model(rich):
    for file in tokenizer_files(rich):
        assert any(fnmatch.fnmatch(file.as_posix(), pattern) for pattern in WANTED)
