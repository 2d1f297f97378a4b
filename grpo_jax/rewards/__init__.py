"""Rewards: pure functions on text, and the pool of worker processes that runs them. No jax here.

A reward has TRL's signature, `f(prompts, completions, completion_ids=None, **columns) -> list[float | None]`:
lists of equal length, one entry per row; `None` means that the reward does not apply to that row. It may also take
`trainer_state`, `log_extra`, `log_metric` and `reward_timeout`: see `pool/logs.py`.

docs/rewards.md lists all rewards. TRL's have TRL's names. Those for mathematics need the package math-verify.
"""

from typing import TYPE_CHECKING, Any

BUILTIN = {
    "accuracy_reward": "grpo_jax.rewards.functions.accuracy:accuracy_reward",
    "boxed_math": "grpo_jax.rewards.functions.boxed:boxed_math",
    "code": "grpo_jax.rewards.functions.code:code",
    "code_format": "grpo_jax.rewards.functions.open_r1:code_format",
    "cosine_scaled_reward": "grpo_jax.rewards.functions.cosine:cosine_scaled_reward",
    "countdown": "grpo_jax.rewards.functions.countdown:countdown",
    "gsm8k": "grpo_jax.rewards.functions.gsm8k:gsm8k",
    "gsm8k_strict": "grpo_jax.rewards.functions.gsm8k:gsm8k_strict",
    "kimi_length": "grpo_jax.rewards.functions.kimi:kimi_length",
    "knights_and_knaves": "grpo_jax.rewards.functions.knights:knights_and_knaves",
    "language_consistency": "grpo_jax.rewards.functions.language:language_consistency",
    "language_mixing": "grpo_jax.rewards.functions.language:language_mixing",
    "logic_rl": "grpo_jax.rewards.functions.knights:logic_rl",
    "logic_rl_format": "grpo_jax.rewards.functions.format:logic_rl_format",
    "mini_r1_equation": "grpo_jax.rewards.functions.mini_r1:mini_r1_equation",
    "mini_r1_format": "grpo_jax.rewards.functions.mini_r1:mini_r1_format",
    "open_r1_format": "grpo_jax.rewards.functions.open_r1:open_r1_format",
    "reasoning_accuracy_reward": "grpo_jax.rewards.functions.accuracy:reasoning_accuracy_reward",
    "reasoning_steps": "grpo_jax.rewards.functions.open_r1:reasoning_steps",
    "reinforce_lite": "grpo_jax.rewards.functions.simple_grpo:reinforce_lite",
    "repetition": "grpo_jax.rewards.functions.penalties:repetition",
    "repetition_penalty_reward": "grpo_jax.rewards.functions.penalties:repetition_penalty_reward",
    "simple_grpo_correct": "grpo_jax.rewards.functions.simple_grpo:simple_grpo_correct",
    "simple_grpo_format": "grpo_jax.rewards.functions.simple_grpo:simple_grpo_format",
    "soft_format": "grpo_jax.rewards.functions.format:soft_format",
    "soft_overlong_punishment_reward": "grpo_jax.rewards.functions.penalties:soft_overlong_punishment_reward",
    "tag_count": "grpo_jax.rewards.functions.open_r1:tag_count",
    "think_answer_format": "grpo_jax.rewards.functions.format:think_answer_format",
    "think_format_reward": "grpo_jax.rewards.functions.format:think_format_reward",
    "tinyzero": "grpo_jax.rewards.functions.mini_r1:tinyzero",
}
"""Built-in rewards: name -> "module:function", imported on first use."""

_HOME = {
    "Reward": "grpo_jax.rewards.load",
    "load_reward": "grpo_jax.rewards.load",
    "RewardPool": "grpo_jax.rewards.pool.pool",
    "Scores": "grpo_jax.rewards.pool.batch",
    "Stream": "grpo_jax.rewards.pool.stream",
    "combine": "grpo_jax.rewards.functions.combination",
    "accuracy_reward": "grpo_jax.rewards.functions.accuracy",
    "reasoning_accuracy_reward": "grpo_jax.rewards.functions.accuracy",
    "think_format_reward": "grpo_jax.rewards.functions.format",
    "get_cosine_scaled_reward": "grpo_jax.rewards.functions.cosine",
    "get_soft_overlong_punishment": "grpo_jax.rewards.functions.penalties",
    "get_repetition_penalty_reward": "grpo_jax.rewards.functions.penalties",
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
    from grpo_jax.rewards.functions.accuracy import accuracy_reward, reasoning_accuracy_reward
    from grpo_jax.rewards.functions.combination import combine
    from grpo_jax.rewards.functions.cosine import get_cosine_scaled_reward
    from grpo_jax.rewards.functions.format import think_format_reward
    from grpo_jax.rewards.functions.penalties import (
        get_repetition_penalty_reward,
        get_soft_overlong_punishment,
    )
    from grpo_jax.rewards.load import Reward, load_reward
    from grpo_jax.rewards.pool.batch import Scores
    from grpo_jax.rewards.pool.pool import RewardPool
    from grpo_jax.rewards.pool.stream import Stream


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that a worker process starts without numpy."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'grpo_jax.rewards' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
