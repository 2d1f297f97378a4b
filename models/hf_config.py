"""A Hugging Face `config.json` to our ModelConfig and back.

Two layouts are read: the published Qwen2.5 one (`rope_theta`, `rope_scaling`, `torch_dtype`) and the one that
transformers 5 writes (`rope_parameters`, `dtype`). A key that changes the mathematics in a way that the
forward pass does not follow is refused, never skipped: a run on the wrong function trains without any sign of
it.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig, YarnConfig

Json = dict[str, Any]
Path = str | pathlib.Path

# Our field <- their key. Every one must be in the file: a default would be a guess about somebody's weights.
INTEGERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# Keys that have one value in every model that this forward pass computes. An absent or null key is that
# value.
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


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`, from its `config.json` alone.

    Raises UserError for a missing folder or file, bad JSON, another architecture than Qwen2, a missing or
    ill-typed key (named), and for every key whose value this forward pass does not follow (sliding windows,
    other activations, rope scaling other than YaRN, quantized weights).
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.parent.is_dir():
        raise UserError(f"{folder}: no such model folder")
    raw = read_json(path)
    _refuse_other_mathematics(raw, path)
    rope = _rope(raw, path)
    _refuse_missing(raw | rope, path)
    sizes = {ours: _integer(raw, theirs, path) for ours, theirs in INTEGERS.items()}
    sizes["num_kv_heads"] = _kv_heads(raw, sizes["num_heads"], path)
    sizes["head_dim"] = _head_dim(raw, sizes, path)
    return ModelConfig(
        **sizes,
        rope_theta=_number(raw | rope, "rope_theta", path),
        rms_norm_eps=_number(raw, "rms_norm_eps", path),
        tie_word_embeddings=_boolean(raw, "tie_word_embeddings", path),
        rope_scaling=_rope_scaling(raw, rope, path),
    )


def load_eos_ids(folder: Path) -> tuple[int, ...]:
    """Every token id that ends a completion: `generation_config.json`'s `eos_token_id`, else `config.json`'s.

    Qwen2.5-Instruct names two in the first file and one in the second. Empty when neither file names any.
    """
    value = _special_id(folder, "eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{folder}: eos_token_id {value!r} must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def load_pad_id(folder: Path) -> int | None:
    """`pad_token_id` of `generation_config.json`, else of `config.json`, else None."""
    value = _special_id(folder, "pad_token_id")
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{folder}: pad_token_id {value!r} must be a token id")
    return value


def published_layout(cfg: ModelConfig, dtype: str) -> Json:
    """The `config.json` of `cfg`, in the layout that every transformers release since 4.45 reads."""
    yarn = cfg.rope_scaling
    scaling = None
    if yarn is not None:
        scaling = {"type": "yarn", "rope_type": "yarn"} | {
            k: v for k, v in vars(yarn).items() if v is not None
        }
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": ONLY["hidden_act"],
        "attention_dropout": ONLY["attention_dropout"],
        "initializer_range": 0.02,
        **{theirs: getattr(cfg, ours) for ours, theirs in INTEGERS.items()},
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def read_json(path: pathlib.Path) -> Json:
    """The JSON object in `path`; UserError when it is absent, unreadable or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def _refuse_other_mathematics(raw: Json, path: pathlib.Path) -> None:
    if raw.get("model_type") != "qwen2":
        raise UserError(
            f"{path}: model_type {raw.get('model_type')!r} is not supported; this is for 'qwen2' models"
        )
    for key, only in ONLY.items():
        if raw.get(key) is not None and raw[key] != only:
            mend = "dequantize the weights first" if only is None else f"only {json.dumps(only)} is supported"
            raise UserError(f"{path}: {key} is {_short(raw[key])}; {mend}")
    other = set(raw.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise UserError(
            f"{path}: layer_types has {sorted(map(str, other))}; only 'full_attention' is supported"
        )


def _rope(raw: Json, path: pathlib.Path) -> Json:
    """Whichever object speaks of rotary positions, in transformers' own order of preference."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_scaling or rope_parameters must be an object, not {_short(rope)}")
    return {key: value for key, value in rope.items() if value is not None}


def _refuse_missing(raw: Json, path: pathlib.Path) -> None:
    others = {"num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings"}
    missing = sorted({*INTEGERS.values(), *others} - raw.keys())
    if missing:
        raise UserError(f"{path}: missing {', '.join(missing)}; copy the model's own config.json again")


def _kv_heads(raw: Json, num_heads: int, path: pathlib.Path) -> int:
    if raw["num_key_value_heads"] is None:
        return num_heads  # what null means to transformers
    kv_heads = _integer(raw, "num_key_value_heads", path)
    if num_heads % kv_heads:
        raise UserError(
            f"{path}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    return kv_heads


def _head_dim(raw: Json, sizes: dict[str, int], path: pathlib.Path) -> int:
    if raw.get("head_dim") is not None:
        head_dim = _integer(raw, "head_dim", path)
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


def _rope_scaling(raw: Json, rope: Json, path: pathlib.Path) -> YarnConfig | None:
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
        factor=_number(given, "factor", path),
        original_max_position_embeddings=_integer(given, "original_max_position_embeddings", path),
        beta_fast=_number(given, "beta_fast", path),
        beta_slow=_number(given, "beta_slow", path),
        attention_factor=_attention_factor(given, path),
    )


def _refuse_unknown_rope_keys(rope: Json, known: set[str], path: pathlib.Path) -> None:
    harmless = {"truncate": True, "partial_rotary_factor": 1.0}
    for key in rope.keys() - known - {"type", "rope_type", "rope_theta"}:
        if harmless.get(key) != rope[key]:
            raise UserError(f"{path}: {key} {_short(rope[key])} for rotary positions is not supported")


def _attention_factor(given: Json, path: pathlib.Path) -> float | None:
    """The factor on cos and sin; `mscale` and `mscale_all_dim` are another way to spell one."""
    if "attention_factor" in given:
        return _number(given, "attention_factor", path)
    if not ("mscale" in given and "mscale_all_dim" in given):
        return None
    over, under = (
        0.1 * _number(given, key, path) * math.log(max(given["factor"], 1.0)) + 1.0
        for key in ("mscale", "mscale_all_dim")
    )
    return over / under


def _integer(raw: Json, key: str, path: pathlib.Path) -> int:
    value = raw[key]
    if type(value) is not int or value < 1:  # True is an int to isinstance
        raise UserError(f"{path}: {key} must be a positive whole number, not {_short(value)}")
    return value


def _number(raw: Json, key: str, path: pathlib.Path) -> float:
    value = raw[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{path}: {key} must be a positive number, not {_short(value)}")
    return float(value)


def _boolean(raw: Json, key: str, path: pathlib.Path) -> bool:
    value = raw[key]
    if not isinstance(value, bool):
        raise UserError(f"{path}: {key} must be true or false, not {_short(value)}")
    return value


def _special_id(folder: Path, key: str) -> Any:
    generation = pathlib.Path(folder) / "generation_config.json"
    value = read_json(generation).get(key) if generation.is_file() else None
    return read_json(pathlib.Path(folder) / "config.json").get(key) if value is None else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
