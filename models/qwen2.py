"""Qwen2 and Qwen2.5: the `config.json` and the tensors of a checkpoint."""

from __future__ import annotations

import pathlib
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import Json, refuse_other_values
from grpo_jax.models.config_shape import read_shape, write_shape
from grpo_jax.models.names import EMBEDDING, HEAD, Row

# Keys that must have this value, because the forward pass implements no other. An absent or null key means it.
ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_mrope": False,
    "use_qk_norm": False,
    "attention_bias": True,  # q, k and v carry a bias; transformers' Qwen2 has no switch for it
    "qkv_bias": True,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


def read_config(raw: Json, path: pathlib.Path) -> ModelConfig:
    """The shape in `raw`, the content of the file `path`. Raises UserError as `hf_config.load_config`."""
    refuse_other_values(raw, ONLY, path)
    if other := set(raw.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(
            f"{path}: layer_types has {sorted(map(str, other))}; only 'full_attention' is supported"
        )
    return read_shape(raw, path)


def write_config(cfg: ModelConfig, dtype: str) -> Json:
    """The keys of a `config.json` for `cfg`, without the model's names."""
    return {
        "hidden_act": ONLY["hidden_act"],
        "attention_dropout": ONLY["attention_dropout"],
        "initializer_range": 0.02,
        **write_shape(cfg),
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }


_ATTENTION = "model.layers.{layer}.self_attn."
_MLP = "model.layers.{layer}.mlp."
# In the order of Hugging Face's files.
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
