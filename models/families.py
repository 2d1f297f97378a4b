"""The registry of model families, by the `model_type` of their `config.json`.

A family has a file with its config reader and its table of tensors (`qwen2.py`), and a row of `FAMILIES`. All families
share one forward pass and set its options.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models import qwen2
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.names import HEAD, Row

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of one family are read, written and computed."""

    language_model: str
    """The name of transformers' class in `architectures`; `classifier` is that of a reward model."""
    classifier: str
    read_config: Callable[[Json, pathlib.Path], ModelConfig]
    """The content of a config.json and its path (for messages) -> the shape."""
    write_config: Callable[[ModelConfig, str], Json]
    """The shape and the weights' dtype -> the keys of a config.json except `architectures` and `model_type`."""
    table: Sequence[Row]
    """Every tensor of a checkpoint and the leaf of our tree that holds it, in the order of Hugging Face's files."""
    qkv_bias: bool
    """Whether the projections to queries, keys and values add a bias."""


FAMILIES = {
    "qwen2": Family(
        language_model="Qwen2ForCausalLM",
        classifier="Qwen2ForSequenceClassification",
        read_config=qwen2.read_config,
        write_config=qwen2.write_config,
        table=qwen2.TABLE,
        qkv_bias=True,
    ),
}


def family_named(model_type: Any, path: pathlib.Path) -> Family:
    """The family of the config.json at `path`. Raises UserError if it is not supported."""
    if model_type not in list(FAMILIES):  # a list: the value may be anything that JSON has
        known = ", ".join(map(repr, FAMILIES))
        raise UserError(f"{path}: model_type {model_type!r} is not supported; the supported ones are {known}")
    return FAMILIES[model_type]


def family_of(cfg: ModelConfig) -> Family:
    """The family of a shape."""
    return FAMILIES[cfg.model_type]


def rows(cfg: ModelConfig) -> list[Row]:
    """The rows for a model of this shape: all, or without the head if it is tied to the embedding."""
    table = family_of(cfg).table
    return [row for row in table if not (cfg.tie_word_embeddings and row.name == HEAD)]


def summed_axes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path of each matrix of our tree -> the axes that a product sums over (its inputs), counting L.

    A path has the same axes in every family that has it."""
    every_row = (row for family in FAMILIES.values() for row in family.table)
    matrices = (row for row in every_row if len(row.theirs) == 2)  # (outputs, inputs)
    return {row.path: tuple(row.ours.index(n) + row.stacked for n in row.theirs[1]) for row in matrices}
