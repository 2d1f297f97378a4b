"""Stage 3: rewards. Pure functions on text, and the pool of processes that runs them. No jax in here.

A reward has TRL's signature, `f(prompts, completions, completion_ids=None, **columns) -> list[float | None]`:
lists of equal length, one entry a row; `None` says that the reward does not apply to that row.
"""

from typing import TYPE_CHECKING, Any

BUILTIN = {
    "countdown": "grpo_jax.rewards.countdown:countdown",
    "gsm8k": "grpo_jax.rewards.gsm8k:gsm8k",
    "gsm8k_strict": "grpo_jax.rewards.gsm8k:gsm8k_strict",
    "think_answer_format": "grpo_jax.rewards.format:think_answer_format",
}
"""The rewards that are called by name: name -> "module:function", imported when first asked for."""

_HOME = {
    "Reward": "grpo_jax.rewards.load",
    "load_reward": "grpo_jax.rewards.load",
    "RewardPool": "grpo_jax.rewards.pool",
    "Scores": "grpo_jax.rewards.batch",
    "combine": "grpo_jax.rewards.combination",
}
__all__ = ["BUILTIN", "Reward", "RewardPool", "Scores", "combine", "load_reward"]

if TYPE_CHECKING:
    from grpo_jax.rewards.batch import Scores
    from grpo_jax.rewards.combination import combine
    from grpo_jax.rewards.load import Reward, load_reward
    from grpo_jax.rewards.pool import RewardPool


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that a worker process starts without numpy."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'grpo_jax.rewards' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
