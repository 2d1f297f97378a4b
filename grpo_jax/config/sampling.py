"""Settings of rewards, sampling and rollouts."""

from typing import Literal

from pydantic import Field, field_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Name, Positive, Share, Specs, Texts, Tokens


class RewardSettings(Settings):
    """Rewards."""

    rewards: Specs = Field(["countdown"])
    """Reward functions, separated by commas: a name or file.py:function, with options as in boxed_math:think=false, or
    a reward model, model:FOLDER."""
    reward_timeout: float = Field(10.0, gt=0)
    """Seconds after which a reward call is abandoned and its worker replaced."""
    reward_workers: Count | None = None
    """Number of processes that compute rewards; none: one a core, at most 8; 0: rewards run in the run's own process,
    after each rollout, without reward_timeout."""
    on_reward_error: Literal["count", "stop"] = "count"
    """When a reward function raises an error: count it and go on without that reward, or stop the run."""

    @field_validator("rewards")
    @classmethod
    def _rewards_differ(cls, names: list[str]) -> list[str]:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rewards = {names}: {twice} is named twice; keep one and give it a weight")
        return names


class SamplingSettings(Settings):
    """Sampling."""

    max_completion_length: Positive = 256
    """Maximum length of a completion in tokens, including the end-of-sequence token."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0: greedy."""
    top_k: Count = 0
    """Sample from the k most likely tokens; 0: from all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens whose probabilities sum to this; 1: from all."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Leave out tokens with less than this share of the most likely token's probability; 0: none."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Divide the logits of tokens that are in the prompt or in the completion so far by this, and multiply negative
    ones (also in evaluations); 1: no penalty."""
    stop_strings: Texts | None = None
    """A completion ends with the token that completes one of these strings, and keeps it: one text, or a YAML list such
    as ["\\n\\n", "END"]; none: only an end-of-sequence token ends it."""
    min_tokens: Count = 0
    """Minimum number of tokens before an end-of-sequence token (vLLM's min_tokens in TRL's generation_kwargs)."""
    banned_tokens: Tokens | None = None
    """Tokens that are never sampled: the text of one token, or a YAML list of texts and ids, e.g. ["<think>", 17]."""
    rollout_weights: Literal["auto", "int8"] = "auto"
    """Weights for sampling: in dtype, or int8 copies (half the size of bfloat16, with a rounding error)."""
    rollout_cache: Literal["auto", "int8"] = "auto"
    """KV cache for sampling: in dtype, or int8 (about half the size of bfloat16, with a rounding error)."""

    @field_validator("stop_strings")
    @classmethod
    def _stop_strings_are_text(cls, strings: list[str] | None) -> list[str] | None:
        check.first(check.stop_strings(strings or []))
        return strings


class RolloutSettings(Settings):
    """Rollout."""

    prompts_per_step: Positive = 8
    """Number of prompts in a step, over all devices."""
    num_generations: int = Field(8, ge=2)
    """Number of completions sampled for each prompt, its group."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Length of the run in passes over the prompts, in place of max_steps; none: max_steps."""
    dynamic_sampling: bool = False
    """Sample further prompts until prompts_per_step groups have rewards that differ (DAPO)."""
    max_rollouts_per_step: Positive = 4
    """Maximum number of rollouts in a step with dynamic_sampling, each of prompts_per_step prompts."""
    rollout_segment: Count = 64
    """Number of tokens decoded between compactions, which remove finished rows and grow the cache; 0: no compaction."""
    rollout_memory: float | None = Field(None, gt=0)
    """Memory of a rollout's KV cache and logits, in GiB a device. Prompts that do not fit wait until others have ended;
    none: what weights and optimizer leave of a device's memory (on CPU: no limit)."""
    reflection: Name | None = None
    """Count completions that contain phrases of reflection (rechecking, hesitating, exploring), and their lengths:
    `words` for the built-in list, or a YAML file of category: [phrases]; none: do not count."""
    log_completions_steps: Count = 10
    """Save the completions of the first step and of every so many steps; 0: never."""
    completion_samples: Share = 0.0
    """Share of all completions written to completion_samples.txt; mini-R1 uses 0.1; 0: none."""
    success_samples: Share = 0.0
    """Share of successful completions written to success_completion_samples.txt; mini-R1 uses 0.1; 0: none."""
