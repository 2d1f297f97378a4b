"""Stage 3: rewards. Pure functions on text, and the pool of processes that runs them. No jax in here.

A reward has TRL's signature, `f(prompts, completions, completion_ids=None, **columns) -> list[float | None]`:
lists of equal length, one entry a row; `None` says that the reward does not apply to that row. It may also take
`trainer_state`, `log_extra` and `log_metric`: see `logs.py`.

TRL's ready rewards are here under TRL's names. They need the package math-verify where they judge mathematics.
"""

from typing import TYPE_CHECKING, Any

BUILTIN = {
    "accuracy_reward": "grpo_jax.rewards.accuracy:accuracy_reward",
    "countdown": "grpo_jax.rewards.countdown:countdown",
    "gsm8k": "grpo_jax.rewards.gsm8k:gsm8k",
    "gsm8k_strict": "grpo_jax.rewards.gsm8k:gsm8k_strict",
    "knights_and_knaves": "grpo_jax.rewards.knights:knights_and_knaves",
    "logic_rl": "grpo_jax.rewards.knights:logic_rl",
    "reasoning_accuracy_reward": "grpo_jax.rewards.accuracy:reasoning_accuracy_reward",
    "think_answer_format": "grpo_jax.rewards.format:think_answer_format",
    "think_format_reward": "grpo_jax.rewards.format:think_format_reward",
}
"""The rewards that are called by name: name -> "module:function", imported when first asked for."""

_HOME = {
    "Reward": "grpo_jax.rewards.load",
    "load_reward": "grpo_jax.rewards.load",
    "RewardPool": "grpo_jax.rewards.pool",
    "Scores": "grpo_jax.rewards.batch",
    "Stream": "grpo_jax.rewards.stream",
    "combine": "grpo_jax.rewards.combination",
    "accuracy_reward": "grpo_jax.rewards.accuracy",
    "reasoning_accuracy_reward": "grpo_jax.rewards.accuracy",
    "think_format_reward": "grpo_jax.rewards.format",
    "get_cosine_scaled_reward": "grpo_jax.rewards.cosine",
    "get_soft_overlong_punishment": "grpo_jax.rewards.penalties",
    "get_repetition_penalty_reward": "grpo_jax.rewards.penalties",
}
__all__ = [
    "BUILTIN",
    "Reward",
    "RewardPool",
    "Scores",
    "Stream",
    "accuracy_reward",
    "combine",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "load_reward",
    "reasoning_accuracy_reward",
    "think_format_reward",
]

if TYPE_CHECKING:
    from grpo_jax.rewards.accuracy import accuracy_reward, reasoning_accuracy_reward
    from grpo_jax.rewards.batch import Scores
    from grpo_jax.rewards.combination import combine
    from grpo_jax.rewards.cosine import get_cosine_scaled_reward
    from grpo_jax.rewards.format import think_format_reward
    from grpo_jax.rewards.load import Reward, load_reward
    from grpo_jax.rewards.penalties import get_repetition_penalty_reward, get_soft_overlong_punishment
    from grpo_jax.rewards.pool import RewardPool
    from grpo_jax.rewards.stream import Stream


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that a worker process starts without numpy."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'grpo_jax.rewards' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
