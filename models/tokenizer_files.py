"""The files that make a tokenizer, in the folder of a model: copied as they are, or written by the tokenizer itself."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # SentencePiece's
    "*.tiktoken",
    "*.jinja",
    "chat_template.json",
    "chat_templates.json",
    "additional_chat_templates/*.jinja",
)


def tokenizer_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The files of the tokenizer in `folder`, relative to it."""
    folder = pathlib.Path(folder)
    found = (file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file())
    return sorted({file.relative_to(folder) for file in found})


def write_tokenizer(tokenizer: Any, out: str | pathlib.Path) -> None:
    """Write a tokenizer to the folder `out`: the files of one that is given as a folder, bit by bit; or the object."""
    if not isinstance(tokenizer, str | pathlib.Path):
        tokenizer.save_pretrained(str(out))
        return
    for file in tokenizer_files(tokenizer):
        target = pathlib.Path(out) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pathlib.Path(tokenizer) / file, target)
