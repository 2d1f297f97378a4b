"""The shape of a model: everything that the forward pass needs to know, and nothing else.

`models/hf_config.py` reads it from a Hugging Face `config.json`. `PUBLISHED` has the published sizes, so that memory
can be planned for a 72B model without downloading it.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """YaRN: rotary positions scaled for long contexts (arXiv:2309.00071), as in transformers.

    `attention_factor` scales cos and sin; None means 0.1 * ln(factor) + 1 (the paper's section 3.4).
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder. The letters are those of the shape comments: V, D, F, L, N, K, H."""

    vocab_size: int  # V: rows of the embedding, padded beyond the tokenizer's ids
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K, divides N
    head_dim: int  # H
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_scaling: YarnConfig | None = None
    model_type: str = "qwen2"  # the row of `families.FAMILIES`


def _qwen25(
    *, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
    )


# The Instruct checkpoints. Some base models differ in values that change no shape (epsilon 1e-5 for the 32B, 131072
# positions); when weights are loaded, the folder's own config.json is used.
PUBLISHED: dict[str, ModelConfig] = {
    "0.5b": _qwen25(hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2, vocab=151936, tied=True),
    "1.5b": _qwen25(hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, vocab=151936, tied=True),
    "3b": _qwen25(hidden=2048, ffn=11008, layers=36, heads=16, kv_heads=2, vocab=151936, tied=True),
    "7b": _qwen25(hidden=3584, ffn=18944, layers=28, heads=28, kv_heads=4, vocab=152064, tied=False),
    "14b": _qwen25(hidden=5120, ffn=13824, layers=48, heads=40, kv_heads=8, vocab=152064, tied=False),
    "32b": _qwen25(hidden=5120, ffn=27648, layers=64, heads=40, kv_heads=8, vocab=152064, tied=False),
    "72b": _qwen25(hidden=8192, ffn=29568, layers=80, heads=64, kv_heads=8, vocab=152064, tied=False),
}


SHAPE = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=1024,  # room for the default lengths of `eval` and `generate`
)
