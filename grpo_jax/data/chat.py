"""From a prompt to the text and tokens that the model reads.

As in TRL: plain text goes in as it is, a conversation goes through the tokenizer's chat template. A
`system_prompt` makes a conversation of plain text, and takes the place of a conversation's own system
message.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
_CHUNK = 1024  # rows a tokenizer call: its answer holds far more than the ids


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

    A conversation that ends with the user is followed by the opening of the assistant's turn; one that ends
    with the assistant (a prefill such as an opened `<think>`) is left open after its last word. A `prefill`
    comes after every other prompt. The template sees `chat_template_kwargs` as variables, such as
    `enable_thinking`.
    UserError: a conversation without a chat template, or one that the template refuses.
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
    """A prompt (see `as_asked`) with its answer, as another model reads both: text after text, or a conversation
    through that model's template. An answer to a prompt that has opened the assistant's turn goes on with that turn.

    UserError: as of `render`.
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
    """The prompt with what settings add to it: text, or the messages that the chat template sees."""
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


def _check_template(tokenizer: "PreTrainedTokenizerBase", mend: str, whose: str = "") -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{whose}its tokenizer has no chat template, which conversations (and system_prompt) need; "
            f"{mend}, or text prompts through prompt_column"
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
    """Token ids of each text. A template writes its own special tokens; plain text gets the tokenizer's."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        ids += tokenizer(chunk, add_special_tokens=not chat, return_attention_mask=False)["input_ids"]
    return ids
