"""The shape of a decoder in a `config.json`: the keys that the supported families have in common.

Reads the layout of the published Qwen2.5 (`rope_theta`, `rope_scaling`), and the one that transformers 5 writes
(`rope_parameters`).
"""

from __future__ import annotations

import pathlib
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import Json, boolean, integer, number, refuse_missing
from grpo_jax.models.config_rope import rope_scaling, rope_settings

INTEGERS = {  # our field <- their key
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}
OTHER_KEYS = ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings")


def read_shape(raw: Json, path: pathlib.Path) -> ModelConfig:
    """The shape in `raw`, the content of the file `path`. Raises UserError as `hf_config.load_config`."""
    rope = rope_settings(raw, path)
    refuse_missing(raw | rope, (*INTEGERS.values(), *OTHER_KEYS), path)
    sizes: dict[str, Any] = {ours: integer(raw, theirs, path) for ours, theirs in INTEGERS.items()}
    sizes["num_kv_heads"] = _kv_heads(raw, sizes["num_heads"], path)
    sizes["head_dim"] = _head_dim(raw, sizes, path)
    return ModelConfig(
        **sizes,
        rope_theta=number(raw | rope, "rope_theta", path),
        rms_norm_eps=number(raw, "rms_norm_eps", path),
        tie_word_embeddings=boolean(raw, "tie_word_embeddings", path),
        rope_scaling=rope_scaling(raw, rope, path),
    )


def write_shape(cfg: ModelConfig) -> Json:
    """The keys of the shape, as `read_shape` reads them."""
    yarn = cfg.rope_scaling
    scaling = None
    if yarn is not None:
        given = {key: value for key, value in vars(yarn).items() if value is not None}
        scaling = {"type": "yarn", "rope_type": "yarn"} | given
    return {
        **{theirs: getattr(cfg, ours) for ours, theirs in INTEGERS.items()},
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tie_word_embeddings,
    }


def _kv_heads(raw: Json, num_heads: int, path: pathlib.Path) -> int:
    if raw["num_key_value_heads"] is None:
        return num_heads  # the meaning of null in transformers
    kv_heads = integer(raw, "num_key_value_heads", path)
    if num_heads % kv_heads:
        raise UserError(
            f"{path}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    return kv_heads


def _head_dim(raw: Json, sizes: dict[str, int], path: pathlib.Path) -> int:
    if raw.get("head_dim") is not None:
        head_dim = integer(raw, "head_dim", path)
    elif sizes["hidden_size"] % sizes["num_heads"]:
        raise UserError(
            f"{path}: hidden_size {sizes['hidden_size']} is no multiple of "
            f"num_attention_heads {sizes['num_heads']}, and there is no head_dim"
        )
    else:
        head_dim = sizes["hidden_size"] // sizes["num_heads"]
    if head_dim % 2:
        raise UserError(f"{path}: head_dim {head_dim} is odd; rotary positions turn pairs")
    return head_dim
