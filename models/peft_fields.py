"""The fields of PEFT's LoraConfig: each is read, makes no difference here, or is refused when it is set.

A field that is not listed comes from another version of PEFT, and is refused when it is set.
"""

from collections.abc import Mapping
from typing import Any

from grpo_jax.errors import UserError

# What an adapter computes depends on these, and they are read.
READ = {"r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules"}
# They change nothing that is computed here: descriptions, settings of PEFT's own process, and the settings of other
# fields (of an initialisation, of QALoRA, of layers_to_transform), which decide by themselves.
NEUTRAL = {"auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config"}
NEUTRAL |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"}
NEUTRAL |= {"layers_pattern", "megatron_core", "ensure_weight_tying"}
# The values that mean what this project computes.
VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
}
# Refused unless false or empty.
UNSET = {"use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "rank_pattern", "alpha_pattern"}
UNSET |= {"modules_to_save", "layers_to_transform", "layer_replication", "megatron_config"}
UNSET |= {"target_parameters", "trainable_token_indices", "alora_invocation_tokens"}
FROZEN = ": embedding and head stay frozen beside adapters"
# Refused unless null: to PEFT even an empty value asks for the method.
NULL = {"arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config"}

# An adapter that was trained: how it began does not matter, unless that changed the weights under it.
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")
FOR_READING = VALUES | {"init_lora_weights": UNCHANGED_BASE}
NEUTRAL_FOR_READING = NEUTRAL | {"lora_dropout", "inference_mode"}
# An adapter that is to be trained begins as it does by PEFT's default.
FOR_TRAINING = VALUES | {"init_lora_weights": (True,)}
NEUTRAL_FOR_TRAINING = NEUTRAL | {"lora_dropout"}  # read, as a setting of training
UNSET_FOR_TRAINING = UNSET | {"inference_mode"}


def check_adapter(where: Any, config: Mapping[str, Any]) -> None:
    """Raise UserError for a field of a saved adapter's configuration that makes it compute something else."""
    for name, value in config.items():
        if name not in READ | NEUTRAL_FOR_READING:
            _check(where, name, value, FOR_READING, UNSET)


def check_training(where: Any, config: Mapping[str, Any]) -> None:
    """Raise UserError for a field that asks for another training than that of plain LoRA."""
    for name, value in config.items():
        if name not in READ | NEUTRAL_FOR_TRAINING:
            _check(where, name, value, FOR_TRAINING, UNSET_FOR_TRAINING)


def _check(where: Any, name: str, value: Any, values: dict[str, tuple[Any, ...]], unset: set[str]) -> None:
    if value is None:
        return
    if name in values:
        if value not in values[name]:
            known = " or ".join(map(repr, values[name]))
            raise UserError(f"{where}: {name} = {value!r} is not supported; use {known}{_why(name)}")
    elif name in unset | NULL:
        if value or name in NULL:
            reason = FROZEN if name == "modules_to_save" else " is not supported"
            raise UserError(f"{where}: {name} = {value!r:.80}{reason}; leave it out")
    elif value:
        raise UserError(
            f"{where}: {name} = {value!r:.80} is no setting that this version knows; leave it out if the adapter "
            "computes the same without it"
        )


def _why(name: str) -> str:
    if name != "init_lora_weights":
        return ""
    return " (others may change the weights under it: save it by path_initial_model_for_weight_conversion)"
