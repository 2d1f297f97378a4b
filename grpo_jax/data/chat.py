"""Turns prompts into the text and tokens that the model reads.

As in TRL, plain text is used unchanged, and a conversation goes through the tokenizer's chat template. A
`system_prompt` turns plain text into a conversation, and replaces a conversation's own system message.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
_CHUNK = 1024  # rows per tokenizer call, because its result takes far more memory than the ids


def is_chat(prompt: Prompt, system_prompt: str | None) -> bool:
    """Whether the chat template applies."""
    return system_prompt is not None or not isinstance(prompt, str)


def render(
    prompt: Prompt,
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str | None = None,
    *,
    prefill: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text that the model continues.

    A conversation that ends with the user is followed by the opening of the assistant's turn. One that ends with the
    assistant (a prefill such as an opened `<think>`) stays open after its last word; to all others `prefill` is
    appended. The template sees `chat_template_kwargs` as variables, such as `enable_thinking`.

    Raises:
        UserError: there is no chat template for a conversation, or the template refuses it.
    """
    asked = as_asked(prompt, system_prompt, prefill)
    if isinstance(asked, str):
        return asked
    _check_template(tokenizer, "use an instruction-tuned model", "model: ")
    return _apply(asked, tokenizer, chat_template_kwargs or {})


def render_answered(
    prompt: Prompt,
    answer: str,
    tokenizer: "PreTrainedTokenizerBase",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """A prompt (see `as_asked`) with its answer, for another model: joined texts, or a conversation in that model's
    template. If the prompt opens the assistant's turn, the answer continues it.

    Raises:
        UserError: as `render`.
    """
    if isinstance(prompt, str):
        return prompt + answer
    _check_template(tokenizer, "save one with it (chat_template.jinja)")
    messages, opened = list(prompt), ""
    if messages[-1]["role"] == "assistant":
        opened = messages.pop()["content"]
    messages.append({"role": "assistant", "content": opened + answer})
    return _templated(messages, tokenizer, {**(chat_template_kwargs or {}), "tokenize": False})


def as_asked(prompt: Prompt, system_prompt: str | None = None, prefill: str | None = None) -> Prompt:
    """The prompt with system prompt and prefill: text, or the messages for the chat template."""
    if not is_chat(prompt, system_prompt):
        return str(prompt) + (prefill or "")
    messages = _messages(prompt, system_prompt)
    if prefill is not None and messages[-1]["role"] != "assistant":
        messages = [*messages, {"role": "assistant", "content": prefill}]
    return messages


def _messages(prompt: Prompt, system_prompt: str | None) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system_prompt is None:
        return messages
    if messages and messages[0]["role"] == "system":
        messages = messages[1:]
    return [{"role": "system", "content": system_prompt}, *messages]


def _apply(
    messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", variables: Mapping[str, Any]
) -> str:
    last = messages[-1]["role"]
    if last not in ("user", "tool", "assistant"):
        raise UserError(
            f"prompt: it ends with the role '{last}'; end it with 'user', or 'assistant' for a prefill"
        )
    prefill = last == "assistant"
    ours = {"tokenize": False, "add_generation_prompt": not prefill, "continue_final_message": prefill}
    return _templated(messages, tokenizer, {**variables, **ours})


def _check_template(tokenizer: "PreTrainedTokenizerBase", fix: str, prefix: str = "") -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{prefix}its tokenizer has no chat template, which conversations (and system_prompt) need; "
            f"{fix}, or text prompts through prompt_column"
        )


def _templated(
    messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", variables: Mapping[str, Any]
) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, **variables)
    except (jinja2.TemplateError, ValueError) as error:
        raise UserError(f"prompt: the tokenizer's chat template refuses it: {error}") from None
    return str(text)


def encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, chat: bool) -> list[list[int]]:
    """Token ids of each text. Plain text gets the tokenizer's special tokens; a chat template has written its own."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        ids += tokenizer(chunk, add_special_tokens=not chat, return_attention_mask=False)["input_ids"]
    return ids
