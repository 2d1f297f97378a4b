"""The settings of every verb: typed, frozen, and checked before anything loads. Imports no jax.

Each section is a class; a verb's settings inherit the sections that it uses. The names are the same in YAML, on the
command line and in Python, and keep TRL's spelling where they mean what they mean in TRL. The docstring under
a field is its help text.
"""

from grpo_jax.config.evaluate import EvalConfig
from grpo_jax.config.generate import GenerateConfig
from grpo_jax.config.grpo import GRPOConfig
from grpo_jax.config.load import load_settings
from grpo_jax.config.script import ScriptConfig
from grpo_jax.config.sft import SFTConfig

__all__ = ["EvalConfig", "GRPOConfig", "GenerateConfig", "SFTConfig", "ScriptConfig", "load_settings"]
