"""The rows of the table that maps Hugging Face's tensors to ours, for loading and exporting.

Each family has a table (`families.py`); what is here is the same for all of them.

A row gives both shapes in dimension letters (N, K heads, H head width, D model, F ffn, V vocabulary; S the single
score of a reward model). Theirs are groups: `("NH", "D")` is the matrix [N*H, D] of a torch linear layer. Ours are
single letters, with a leading L if the name has a layer number. The letters determine how tensors are split,
transposed and stacked.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from grpo_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf of our tree and the tensor, or the L tensors, of a checkpoint that hold it."""

    path: tuple[str, ...]
    name: str
    theirs: tuple[str, ...]
    ours: str

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    def names(self, cfg: ModelConfig) -> list[str]:
        """Names of their tensors: one, or one per layer."""
        return (
            [self.name.format(layer=layer) for layer in range(cfg.num_layers)]
            if self.stacked
            else [self.name]
        )

    def size(self, letter: str, cfg: ModelConfig) -> int:
        """The size of a dimension letter."""
        sizes = {
            "V": cfg.vocab_size,
            "D": cfg.hidden_size,
            "F": cfg.intermediate_size,
            "N": cfg.num_heads,
            "K": cfg.num_kv_heads,
            "H": cfg.head_dim,
            "S": 1,
        }
        return sizes[letter]

    def shape(self, cfg: ModelConfig) -> tuple[int, ...]:
        """Our shape, with the leading L."""
        return (cfg.num_layers,) * self.stacked + tuple(self.size(letter, cfg) for letter in self.ours)

    def their_shape(self, cfg: ModelConfig) -> tuple[int, ...]:
        """The shape of one of their tensors."""
        return tuple(math.prod(self.size(letter, cfg) for letter in group) for group in self.theirs)

    def to_ours(self, tensor: np.ndarray, cfg: ModelConfig) -> np.ndarray:
        """A view of one of their tensors in our layout, without L. Copies and reads nothing."""
        letters = "".join(self.theirs)
        split = tensor.reshape([self.size(letter, cfg) for letter in letters])
        return split.transpose([letters.index(letter) for letter in self.ours])

    def to_theirs(self, array: np.ndarray, cfg: ModelConfig) -> np.ndarray:
        """One of our layers in their layout: the inverse of `to_ours`."""
        letters = "".join(self.theirs)
        return array.transpose([self.ours.index(letter) for letter in letters]).reshape(self.their_shape(cfg))


HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
SCORE = Row(("score", "kernel"), "score.weight", ("S", "D"), "DS")
"""The extra tensor of a classifier with one label, which has no head."""
