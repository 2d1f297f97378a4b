"""Chat template: applied once, to conversations only, with an open turn that the model continues."""

import pytest

from grpo_jax.data.chat import encode, render
from grpo_jax.errors import UserError

ASK = [{"role": "user", "content": "2+2?"}]


def test_plain_text_stays_as_it_is(tokenizer):
    assert render("2+2=", tokenizer) == "2+2="


def test_a_conversation_ends_with_an_open_assistant_turn(tokenizer):
    assert render(ASK, tokenizer) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


def test_a_last_assistant_message_stays_open_for_the_model(tokenizer):
    prefill = [*ASK, {"role": "assistant", "content": "Let me see.\n<think>"}]
    assert render(prefill, tokenizer).endswith("<|im_start|>assistant\nLet me see.\n<think>")


def test_a_conversation_has_exactly_one_system_prompt(tokenizer):
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n" + render(ASK, tokenizer)
    assert render("2+2?", tokenizer, "Be brief.") == expected
    assert render(ASK, tokenizer, "Be brief.") == expected
    assert render([{"role": "system", "content": "Ramble."}, *ASK], tokenizer, "Be brief.") == expected


def test_rendering_leaves_the_rows_unchanged(tokenizer):
    messages = [dict(message) for message in ASK]
    render(messages, tokenizer, "Be brief.")
    assert messages == ASK


@pytest.mark.parametrize(("prompt", "system_prompt"), [(ASK, None), ("2+2?", "Be brief.")])
def test_a_conversation_without_a_chat_template_is_refused(bare_tokenizer, prompt, system_prompt):
    with pytest.raises(UserError, match="no chat template"):
        render(prompt, bare_tokenizer, system_prompt)
    assert render("plain", bare_tokenizer) == "plain"


def test_an_error_in_the_chat_template_is_a_user_error(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="roles must alternate"):
        render(ASK, tokenizer)


def test_chat_template_kwargs_reach_the_template(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = "{{ 'thinking' if enable_thinking else 'brief' }}"
    assert render(ASK, tokenizer, chat_template_kwargs={"enable_thinking": True}) == "thinking"
    assert render(ASK, tokenizer) == "brief"
    assert render("2+2=", tokenizer, chat_template_kwargs={"enable_thinking": True}) == "2+2="


def test_special_tokens_are_added_to_plain_text_only(tokenizer):
    (chat,) = encode([render(ASK, tokenizer)], tokenizer, chat=True)
    (plain,) = encode(["2+2="], tokenizer, chat=False)
    assert tokenizer.bos_token_id not in chat
    assert plain.count(tokenizer.bos_token_id) == 1


def test_encoding_in_chunks_loses_no_row(tokenizer):
    texts = ["x" * (i % 7 + 1) for i in range(2500)]
    assert [len(ids) for ids in encode(texts, tokenizer, chat=True)] == [len(text) for text in texts]


def test_a_prefill_is_appended_unless_the_row_has_its_own(tokenizer):
    assert render(ASK, tokenizer, prefill="<think>").endswith("<|im_start|>assistant\n<think>")
    own = [*ASK, {"role": "assistant", "content": "Own"}]
    assert render(own, tokenizer, prefill="<think>").endswith("assistant\nOwn")
    assert render("2+2=", tokenizer, prefill="<think>") == "2+2=<think>"
    assert render("2+2=", tokenizer, "Think.", prefill="<think>").endswith("assistant\n<think>")
