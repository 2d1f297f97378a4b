"""A tokenizer whose words are the ids themselves, so that every system sees the same tokens whatever it wants to be
given: text or ids. It stands in for the model's own, whose texts do not come back as the same ids."""

from collections.abc import Iterable
from typing import Any


def make_tokenizer(size: int) -> Any:
    """`<pad> <eos> w2 w3 ...`: ids 0 to `size`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def text(ids: Iterable[int]) -> str:
    """The text of ids from 2 on."""
    return " ".join(f"w{i}" for i in ids)


def reward(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [float(len(completion) % 7) for completion in completions]
