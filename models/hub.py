"""Finds a model: a local folder, or a hub id whose files are downloaded into the hub's own cache."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from grpo_jax.errors import UserError, first_line, hub_reason
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.other_formats import advice, is_pointer
from grpo_jax.models.tokenizer_files import PATTERNS

WANTED = ["*.json", "*.safetensors", *PATTERNS]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def resolve_model(name: str, field: str = "model") -> pathlib.Path:
    """The folder of the model `name`: a local folder, or the snapshot of a hub id ("Qwen/Qwen2.5-0.5B"). `field` is the
    setting that names it, for messages.

    Raises:
        UserError: it is neither, or the hub cannot be reached and the cache has no copy.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{field} {name!r}: no folder; {advice(folder)}")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(
            f"{field} {name!r}: no such folder; give a local folder or a hub id such as Qwen/Qwen2.5-0.5B"
        )
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # whatever the network, the cache or the hub may raise
        raise UserError(
            f"{field} {name!r}: no such folder; and hub id {name} could not be reached ({hub_reason(error)}): "
            "give a local folder"
        ) from None


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """The tokenizer in `folder`, loaded by transformers. Raises UserError if it is absent or cannot be loaded.

    Its absence is checked here, because transformers 5 makes an empty tokenizer for a folder without one.
    """
    if not any((pathlib.Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}); copy the model's own beside it"
        )
    if (vocabulary := pathlib.Path(folder) / "tokenizer.json").is_file() and is_pointer(vocabulary):
        raise UserError(f"{vocabulary}: a pointer of Git LFS; run git lfs pull, or download the file")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises bare Exceptions for bad files
        raise UserError(f"{folder}: the tokenizer does not open: {first_line(error)}") from None


def check_tokenizer(tokenizer_length: int, cfg: ModelConfig) -> None:
    """Raise UserError if the tokenizer, with its added tokens, has ids beyond the rows of the embedding."""
    if tokenizer_length > cfg.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer_length} tokens, but the model's vocab_size is {cfg.vocab_size}; "
            "use the tokenizer that came with the model"
        )
