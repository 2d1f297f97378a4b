"""Every setting of every verb: typed, frozen, checked before anything loads. No jax in here."""

from grpo_jax.config.grpo import EvalConfig, GenerateConfig, GRPOConfig, SFTConfig, load_settings, parse_mesh

__all__ = ["EvalConfig", "GRPOConfig", "GenerateConfig", "SFTConfig", "load_settings", "parse_mesh"]
