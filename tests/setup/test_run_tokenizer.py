"""The tokenizer that trained is part of the run."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.config import SFTConfig
from grpo_jax.errors import UserError
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.run import open_run
from grpo_jax.setup.tokenizer import tokenizer_of
from grpo_jax.setup.weights import load_trained, save_trained
from grpo_jax.training.script_api import place_model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!"
ROWS = [{"prompt": [{"role": "user", "content": f"{i} + 1"}]} for i in range(8)]


@pytest.fixture
def make(tiny_settings, tiny_model, tmp_path):
    """`make(tokenizer)`: a trainer of the run in tmp_path / "run"."""
    args = GRPOConfig(**tiny_settings | {"output_dir": str(tmp_path / "run"), "eval_prompts": 0})

    def trainer(tokenizer=None, rows=ROWS):
        return GRPOTrainer(str(tiny_model), "tag_count", args, rows, processing_class=tokenizer)

    return trainer


def _begin(trainer):
    with open_run(trainer.args, trainer.components.policy):
        pass  # its folder is there, as if it had been killed at once


@pytest.fixture
def other(tiny_model):
    """The model's tokenizer with a template and a token that it does not have."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = {"default": TEMPLATE, "rag": "r"}
    return tokenizer


def test_a_run_that_resumes_without_its_tokenizer_uses_its_own(make, other, tmp_path):
    first = make(other)
    _begin(first)
    again = make()
    assert again.processing_class.chat_template == other.chat_template
    assert again.processing_class.get_vocab() == other.get_vocab()
    tokens = lambda trainer: trainer.components.prompts.at(range(8)).tokens
    np.testing.assert_array_equal(tokens(first), tokens(again))
    _begin(again)
    policy = again.components.policy
    save_trained(tmp_path / "run" / "hf", policy, load_trained(policy, 0))
    place_model(str(tmp_path / "run"))
    for folder in ("run/hf", "run"):
        assert AutoTokenizer.from_pretrained(tmp_path / folder).chat_template == other.chat_template


def test_a_run_keeps_the_models_own_tokenizer_as_it_was(make, tiny_model, tmp_path):
    _begin(make())
    for file in (tmp_path / "run" / "tokenizer").iterdir():
        assert file.read_bytes() == (tiny_model / file.name).read_bytes()
    ask = "a  b <x>\n1+2"
    assert (
        make().processing_class(ask)["input_ids"]
        == AutoTokenizer.from_pretrained(tiny_model)(ask)["input_ids"]
    )


def test_a_run_is_not_resumed_with_another_tokenizer(make, other, tiny_model):
    _begin(make(other))
    make(other)  # the same again
    with pytest.raises(
        UserError, match=r"processing_class: not the tokenizer of .*: its chat_template differ"
    ):
        make(AutoTokenizer.from_pretrained(tiny_model))


def test_a_run_begun_before_runs_kept_their_tokenizer_resumes(make, other, tmp_path):
    _begin(make(other))
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    assert make(other).processing_class is other
    _begin(make(other))


def test_a_start_that_was_killed_is_repeated_with_another_tokenizer(make, other, tmp_path):
    _begin(make(other))
    (tmp_path / "run" / "config.yaml").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    trainer = make()
    assert trainer.processing_class.chat_template != other.chat_template
    _begin(trainer)
    assert not (tmp_path / "run" / "tokenizer" / "additional_chat_templates").exists()


def test_fine_tuning_resumes_with_its_own_tokenizer(tiny_model, other, tmp_path):
    """The model's folder may have been changed in between."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    other.save_pretrained(model)
    config = SFTConfig(model=str(model), dataset="countdown", output_dir=str(tmp_path / "run"), mesh="data=1")
    with open_run(config, open_policy(config, **tokenizer_of(config.output_dir))):
        pass
    (model / "chat_template.jinja").write_text("something else")
    policy = open_policy(config, **tokenizer_of(config.output_dir))
    assert policy.tokenizer.chat_template == other.chat_template
    assert json.loads((tmp_path / "run" / "run.json").read_text())["version"]
