"""Prompts made from settings: every verb uses the one constructor."""

from types import SimpleNamespace

from grpo_jax.config.data import GradeConfig
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.setup import prompts


def test_every_prompt_setting_reaches_the_prompts(monkeypatch):
    monkeypatch.setattr(prompts, "Prompts", lambda rows, tokenizer, **given: given)
    policy = SimpleNamespace(tokenizer=None, vocabulary=SimpleNamespace(pad_id=5))
    config = GradeConfig(data="d", out="o.jsonl", model="m", prefill="<think>")
    given = prompts.make_prompts(config, policy, [], layout="gsm8k")
    assert given.keys() == PromptSettings.model_fields.keys() | {"pad_id"}
    assert (given["prefill"], given["layout"], given["pad_id"]) == ("<think>", "gsm8k", 5)
