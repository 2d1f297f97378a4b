"""Chat template: applied once, to conversations only, open where the model is to go on."""

import pytest

from grpo_jax.data.chat import encode, render
from grpo_jax.errors import UserError

ASK = [{"role": "user", "content": "2+2?"}]


def test_plain_text_is_dressed_up(tokenizer):
    assert render("2+2=", tokenizer) == "2+2="


def test_the_assistant_turn_is_not_opened(tokenizer):
    assert render(ASK, tokenizer) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


def test_a_prefill_is_closed_before_the_model_continues_it(tokenizer):
    prefill = [*ASK, {"role": "assistant", "content": "Let me see.\n<think>"}]
    assert render(prefill, tokenizer).endswith("<|im_start|>assistant\nLet me see.\n<think>")


def test_the_system_prompt_is_forgotten_or_doubled(tokenizer):
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n" + render(ASK, tokenizer)
    assert render("2+2?", tokenizer, "Be brief.") == expected
    assert render(ASK, tokenizer, "Be brief.") == expected
    assert render([{"role": "system", "content": "Ramble."}, *ASK], tokenizer, "Be brief.") == expected


def test_rendering_changes_the_rows(tokenizer):
    messages = [dict(message) for message in ASK]
    render(messages, tokenizer, "Be brief.")
    assert messages == ASK


@pytest.mark.parametrize(("prompt", "system_prompt"), [(ASK, None), ("2+2?", "Be brief.")])
def test_a_conversation_without_a_template_is_guessed(bare_tokenizer, prompt, system_prompt):
    with pytest.raises(UserError, match="no chat template"):
        render(prompt, bare_tokenizer, system_prompt)
    assert render("plain", bare_tokenizer) == "plain"


def test_what_the_template_refuses_is_a_traceback(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="roles must alternate"):
        render(ASK, tokenizer)


def test_the_template_never_sees_its_variables(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = "{{ 'thinking' if enable_thinking else 'brief' }}"
    assert render(ASK, tokenizer, chat_template_kwargs={"enable_thinking": True}) == "thinking"
    assert render(ASK, tokenizer) == "brief"
    assert render("2+2=", tokenizer, chat_template_kwargs={"enable_thinking": True}) == "2+2="


def test_special_tokens_are_added_twice(tokenizer):
    (chat,) = encode([render(ASK, tokenizer)], tokenizer, chat=True)
    (plain,) = encode(["2+2="], tokenizer, chat=False)
    assert tokenizer.bos_token_id not in chat
    assert plain.count(tokenizer.bos_token_id) == 1


def test_long_lists_lose_rows_between_chunks(tokenizer):
    texts = ["x" * (i % 7 + 1) for i in range(2500)]
    assert [len(ids) for ids in encode(texts, tokenizer, chat=True)] == [len(text) for text in texts]


def test_a_prefill_is_lost_or_put_after_another(tokenizer):
    assert render(ASK, tokenizer, prefill="<think>").endswith("<|im_start|>assistant\n<think>")
    own = [*ASK, {"role": "assistant", "content": "Own"}]
    assert render(own, tokenizer, prefill="<think>").endswith("assistant\nOwn")
    assert render("2+2=", tokenizer, prefill="<think>") == "2+2=<think>"
    assert render("2+2=", tokenizer, "Think.", prefill="<think>").endswith("assistant\n<think>")
