"""The one table between Hugging Face's tensors and ours; loading reads it one way, exporting the other.

A row spells both shapes in dimension letters (N, K heads, H head width, D model, F ffn, V vocabulary; S the one
score of a reward model). Theirs are groups, `("NH", "D")` being the matrix [N*H, D] of a torch linear layer; ours are
single letters, with a leading L when the name has a layer number. Splitting, transposing and stacking all follow from
the letters.
"""

from __future__ import annotations

import dataclasses
import functools
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
        """Their names: one, or one a layer."""
        return (
            [self.name.format(layer=layer) for layer in range(cfg.num_layers)]
            if self.stacked
            else [self.name]
        )

    def size(self, letter: str, cfg: ModelConfig) -> int:
        """What a dimension letter stands for."""
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
        """A view of one of their tensors in our layout, without L; nothing is copied or read."""
        letters = "".join(self.theirs)
        split = tensor.reshape([self.size(letter, cfg) for letter in letters])
        return split.transpose([letters.index(letter) for letter in self.ours])

    def to_theirs(self, array: np.ndarray, cfg: ModelConfig) -> np.ndarray:
        """One layer of ours in their layout: the inverse of `to_ours`."""
        letters = "".join(self.theirs)
        return array.transpose([self.ours.index(letter) for letter in letters]).reshape(self.their_shape(cfg))


_ATTENTION = "model.layers.{layer}.self_attn."
_MLP = "model.layers.{layer}.mlp."
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
# In the order in which Hugging Face's files hold them.
TABLE = (
    Row(("embed", "embedding"), EMBEDDING, ("V", "D"), "VD"),
    Row(("layers", "q", "kernel"), _ATTENTION + "q_proj.weight", ("NH", "D"), "DNH"),
    Row(("layers", "q", "bias"), _ATTENTION + "q_proj.bias", ("NH",), "NH"),
    Row(("layers", "k", "kernel"), _ATTENTION + "k_proj.weight", ("KH", "D"), "DKH"),
    Row(("layers", "k", "bias"), _ATTENTION + "k_proj.bias", ("KH",), "KH"),
    Row(("layers", "v", "kernel"), _ATTENTION + "v_proj.weight", ("KH", "D"), "DKH"),
    Row(("layers", "v", "bias"), _ATTENTION + "v_proj.bias", ("KH",), "KH"),
    Row(("layers", "o", "kernel"), _ATTENTION + "o_proj.weight", ("D", "NH"), "NHD"),
    Row(("layers", "gate", "kernel"), _MLP + "gate_proj.weight", ("F", "D"), "DF"),
    Row(("layers", "up", "kernel"), _MLP + "up_proj.weight", ("F", "D"), "DF"),
    Row(("layers", "down", "kernel"), _MLP + "down_proj.weight", ("D", "F"), "FD"),
    Row(("layers", "input_norm", "scale"), "model.layers.{layer}.input_layernorm.weight", ("D",), "D"),
    Row(
        ("layers", "post_norm", "scale"), "model.layers.{layer}.post_attention_layernorm.weight", ("D",), "D"
    ),
    Row(("norm", "scale"), "model.norm.weight", ("D",), "D"),
    Row(("head", "kernel"), HEAD, ("V", "D"), "DV"),
)
SCORE = Row(("score", "kernel"), "score.weight", ("S", "D"), "DS")
"""Of a classifier with one label, which has no head."""


@functools.cache
def summed_axes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The path of each matrix of our tree -> its axes that a product sums over, L counted: a layer's inputs."""
    matrices = (row for row in TABLE if len(row.theirs) == 2)  # (outputs, inputs)
    return {row.path: tuple(row.ours.index(n) + row.stacked for n in row.theirs[1]) for row in matrices}


def rows(cfg: ModelConfig) -> list[Row]:
    """The rows of a model of this shape: all, or all but the head where it is the embedding."""
    return [row for row in TABLE if not (cfg.tie_word_embeddings and row.name == HEAD)]
