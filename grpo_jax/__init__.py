"""GRPO post-training of language models in JAX and Flax. Public names are imported on first use."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "GRPOConfig": "grpo_jax.config:ScriptConfig",
    "SFTConfig": "grpo_jax.config",
    "GRPOTrainer": "grpo_jax.trainer",
    "TrainerCallback": "grpo_jax.training.callbacks",
    "TrainerControl": "grpo_jax.training.callbacks",
    "TrainerState": "grpo_jax.training.callbacks",
    "EarlyStopping": "grpo_jax.training.callbacks",
    "UserError": "grpo_jax.errors",
    "TrlParser": "grpo_jax.config.trl_parser",
    "ScriptArguments": "grpo_jax.config.script_arguments",
    "ModelConfig": "grpo_jax.config.script_arguments",
    "get_peft_config": "grpo_jax.config.script_arguments",
    "get_quantization_config": "grpo_jax.config.script_arguments",
}
__all__ = [
    "EarlyStopping",
    "GRPOConfig",
    "GRPOTrainer",
    "ModelConfig",
    "SFTConfig",
    "ScriptArguments",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrlParser",
    "UserError",
    "get_peft_config",
    "get_quantization_config",
]

if TYPE_CHECKING:
    from grpo_jax.config import ScriptConfig as GRPOConfig
    from grpo_jax.config import SFTConfig
    from grpo_jax.config.script_arguments import (
        ModelConfig,
        ScriptArguments,
        get_peft_config,
        get_quantization_config,
    )
    from grpo_jax.config.trl_parser import TrlParser
    from grpo_jax.errors import UserError
    from grpo_jax.trainer import GRPOTrainer
    from grpo_jax.training.callbacks import EarlyStopping, TrainerCallback, TrainerControl, TrainerState


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` now: `import grpo_jax` itself stays light (PEP 562)."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'grpo_jax' has no attribute '{name}'")
    module, _, other = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), other or name)
