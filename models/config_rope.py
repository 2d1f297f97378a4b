"""The rotary positions of a `config.json`: plain ones, or YaRN. Any other scaling is refused."""

from __future__ import annotations

import math
import pathlib

from grpo_jax.errors import UserError
from grpo_jax.models.config import YarnConfig
from grpo_jax.models.config_json import Json, integer, number, short


def rope_settings(raw: Json, path: pathlib.Path) -> Json:
    """The object that describes rotary positions, by transformers' order of preference."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_scaling or rope_parameters must be an object, not {short(rope)}")
    return {key: value for key, value in rope.items() if value is not None}


def rope_scaling(raw: Json, rope: Json, path: pathlib.Path) -> YarnConfig | None:
    """The scaling in `rope`, the object that `rope_settings` found in `raw`; None without scaling."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in (None, "default"):
        _refuse_unknown_rope_keys(rope, set(), path)
        return None
    if kind != "yarn":
        raise UserError(f"{path}: rope scaling {kind!r} is not supported; only 'yarn' is, or none")
    mscales = {"mscale", "mscale_all_dim"}
    _refuse_unknown_rope_keys(rope, {*YarnConfig.__dataclass_fields__, *mscales}, path)
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
    given = defaults | {k: v for k, v in rope.items() if v}
    given["original_max_position_embeddings"] = original or raw["max_position_embeddings"]
    if "factor" not in given:
        raise UserError(f"{path}: yarn rope scaling needs a factor")
    return YarnConfig(
        factor=number(given, "factor", path),
        original_max_position_embeddings=integer(given, "original_max_position_embeddings", path),
        beta_fast=number(given, "beta_fast", path),
        beta_slow=number(given, "beta_slow", path),
        attention_factor=_attention_factor(given, path),
    )


def _refuse_unknown_rope_keys(rope: Json, known: set[str], path: pathlib.Path) -> None:
    harmless = {"truncate": True, "partial_rotary_factor": 1.0}
    for key in rope.keys() - known - {"type", "rope_type", "rope_theta"}:
        if harmless.get(key) != rope[key]:
            raise UserError(f"{path}: {key} {short(rope[key])} for rotary positions is not supported")


def _attention_factor(given: Json, path: pathlib.Path) -> float | None:
    """The factor on cos and sin, also if it is given by `mscale` and `mscale_all_dim`."""
    if "attention_factor" in given:
        return number(given, "attention_factor", path)
    if not ("mscale" in given and "mscale_all_dim" in given):
        return None
    over, under = (
        0.1 * number(given, key, path) * math.log(max(given["factor"], 1.0)) + 1.0
        for key in ("mscale", "mscale_all_dim")
    )
    return over / under
