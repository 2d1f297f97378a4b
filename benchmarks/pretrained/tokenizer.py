"""The tokenizer of a GGUF file, as the model's own files have it: byte-level BPE with its way of splitting text."""

from typing import Any

from pretrained.gguf_file import GGUF

from grpo_jax.errors import UserError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Types of a token. Decoding may skip control tokens; user-defined ones are text. Others are padding rows."""
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(gguf: GGUF) -> Any:
    """A `PreTrainedTokenizerFast` with the chat template. UserError for a way of splitting that is not known here."""
    from transformers import PreTrainedTokenizerFast

    tokens = gguf["tokenizer.ggml.tokens"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(gguf, tokens),
        eos_token=tokens[gguf["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[gguf["tokenizer.ggml.padding_token_id"]],
        model_max_length=gguf.shape("context_length"),
        chat_template=gguf["tokenizer.chat_template"],
    )


def _backend(gguf: GGUF, tokens: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kinds = list(zip(tokens, gguf["tokenizer.ggml.token_type"]))
    vocabulary = {
        token: i for i, (token, kind) in enumerate(kinds) if kind in (NORMAL, CONTROL, USER_DEFINED)
    }
    merges = [tuple(merge.split(" ")) for merge in gguf["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == CONTROL]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])
    backend.decoder = decoders.ByteLevel()
    _split_as(backend, gguf)
    return backend


def _split_as(backend: Any, gguf: GGUF) -> None:
    """Set how text is split before BPE."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    way = gguf["tokenizer.ggml.pre"]
    if way == "qwen2":
        backend.normalizer = normalizers.NFC()
        first = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    elif way == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        raise UserError(f"{gguf.path}: tokenizer.ggml.pre is {way!r}; known here are qwen2 and smollm")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way == "smollm")
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, by_bytes])
