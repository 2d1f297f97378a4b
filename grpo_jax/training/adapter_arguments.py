"""The arguments `peft_config` and `quantization_config` of `GRPOTrainer`, as our settings."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from grpo_jax.config.checks import LINEAR
from grpo_jax.errors import UserError
from grpo_jax.models.peft_fields import check_training
from grpo_jax.training.torch_models import WrittenModel

NAMES = ", ".join(LINEAR)
ALL, DEFAULT_TARGETS = "all-linear", ("q_proj", "v_proj")  # PEFT's own choice for Qwen2


def adapters_of(
    peft_config: Any, quantization_config: Any = None, model: WrittenModel | None = None
) -> dict[str, Any]:
    """PEFT's LoraConfig and transformers' BitsAndBytesConfig, or dicts of their fields, as our settings; or the adapter
    of a model that has one. UserError for a field that is not supported here."""
    if model is not None and model.adapter is not None:
        if peft_config is not None:
            raise UserError("peft_config: the model has an adapter of its own; leave it out")
        return {"adapter": str(model.adapter)} | _base_weights_of(quantization_config)
    return _lora_of(peft_config) | _base_weights_of(quantization_config)


def _base_weights_of(quantization_config: Any) -> dict[str, Any]:
    if quantization_config is None:
        return {}
    asked = quantization_config
    asked = asked if isinstance(asked, Mapping) else getattr(asked, "__dict__", {})
    for bits, form in (("load_in_4bit", "nf4"), ("load_in_8bit", "int8")):
        if asked.get(bits) or asked.get(f"_{bits}"):
            return {"base_weights": form}
    raise UserError(
        f"quantization_config: {quantization_config!r:.60} asks for neither load_in_4bit nor load_in_8bit; leave it out"
    )


def _lora_of(peft_config: Any) -> dict[str, Any]:
    if peft_config is None:
        return {}
    given = _fields_of(peft_config)
    if given.get("r") is None:
        raise UserError(f"peft_config: {peft_config!r:.60} has no rank r; give peft.LoraConfig(r=16, ...)")
    check_training("peft_config", given)
    return {
        "lora_r": given["r"],
        "lora_alpha": given.get("lora_alpha", 8),
        "lora_dropout": given.get("lora_dropout") or 0.0,
        "use_rslora": bool(given.get("use_rslora")),
        "lora_target_modules": _targets_of(given.get("target_modules"), given.get("exclude_modules")),
    }


def _fields_of(peft_config: Any) -> dict[str, Any]:
    """A dict, or the fields of a dataclass, where one that has the default of a later PEFT asks for nothing."""
    if isinstance(peft_config, Mapping):
        given = dict(peft_config)
    else:
        fields = dataclasses.fields(peft_config) if dataclasses.is_dataclass(peft_config) else ()
        values = [(field, getattr(peft_config, field.name)) for field in fields]
        given = {field.name: value for field, value in values if field.name == "r" or value != field.default}
    return {name: getattr(value, "value", value) for name, value in given.items()}


def _targets_of(targets: Any, excluded: Any) -> list[str]:
    """The layers of `target_modules` without those of `exclude_modules`: both lists of names, or `all-linear`."""
    every = targets == ALL
    for field, given in (("target_modules", None if every else targets), ("exclude_modules", excluded)):
        if isinstance(given, str):
            raise UserError(
                f"peft_config: {field} = {given!r} is a pattern to PEFT; give a list of names, of {NAMES}"
            )
    named = DEFAULT_TARGETS if targets is None else LINEAR if every else sorted(targets)
    without = _excluded(excluded or ())
    left = [name for name in named if name not in without]
    if not left:
        raise UserError(f"peft_config: target_modules = {targets!r} leaves no layer; name some of {NAMES}")
    return [ALL] if every and not without else left


def _excluded(names: Iterable[str]) -> set[str]:
    """UserError for a name that PEFT would look for inside the names of layers, as `layers.0.self_attn.q_proj`."""
    for name in names:
        if name not in (*LINEAR, "lm_head", "embed_tokens"):
            raise UserError(
                f"peft_config: exclude_modules names {name!r}, which is not supported; choose of {NAMES}"
            )
    return set(names) & set(LINEAR)
