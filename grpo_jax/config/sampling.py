"""Settings of how completions are drawn and judged: rewards, sampling, a training's rollouts."""

from typing import Literal

from pydantic import Field, field_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Name, Positive, Share, Specs, Texts, Tokens


class RewardSettings(Settings):
    """Rewards."""

    rewards: Specs = Field(["countdown"])
    """Rewards: names, file.py:function, with options as in boxed_math:think=false, or a reward model, model:FOLDER;
    several separated by commas."""
    reward_timeout: float = Field(10.0, gt=0)
    """Seconds after which a reward call is given up and its worker replaced."""
    reward_workers: Count = 0
    """Processes that compute rewards; 0: one a core, 8 at most."""
    on_reward_error: Literal["count", "stop"] = "count"
    """When a reward function raises: count it and go on without that reward, or stop the run."""

    @field_validator("rewards")
    @classmethod
    def _rewards_differ(cls, names: list[str]) -> list[str]:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rewards = {names}: {twice} is named twice; keep one and give it a weight")
        return names


class SamplingSettings(Settings):
    """Sampling."""

    max_completion_length: Positive = 256
    """Tokens of a completion at most, its end-of-sequence token included."""
    temperature: float = Field(1.0, ge=0)
    """Logits are divided by it; 0: greedy."""
    top_k: Count = 0
    """Sample among the k likeliest tokens; 0: among all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together hold this probability; 1: among all."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Leave out tokens less likely than this share of the likeliest one's probability; 0: none."""
    stop_strings: Texts | None = None
    """A completion ends with the token that completes one of them, and keeps it: one text, or a YAML list such as
    ["\\n\\n", "END"]; none: only the end of sequence ends it."""
    min_tokens: Count = 0
    """No end-of-sequence token is drawn before so many tokens (vLLM's min_tokens in TRL's generation_kwargs)."""
    banned_tokens: Tokens | None = None
    """Tokens never drawn: one text that is a token, or a YAML list of such texts and ids, e.g. ["<think>", 17]."""
    rollout_weights: Literal["auto", "int8"] = "auto"
    """What is sampled from: the weights in dtype, or int8 copies, half as large as bfloat16 and not quite the same."""
    rollout_cache: Literal["auto", "int8"] = "auto"
    """Keys and values while sampling: in dtype, or int8, about half of bfloat16 and not quite the same."""

    @field_validator("stop_strings")
    @classmethod
    def _stop_strings_are_text(cls, strings: list[str] | None) -> list[str] | None:
        check.first(check.stop_strings(strings or []))
        return strings


class RolloutSettings(Settings):
    """Rollout."""

    prompts_per_step: Positive = 8
    """Prompts of a step, over all devices."""
    num_generations: int = Field(8, ge=2)
    """Completions of each prompt: the group that a completion is compared with."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over the prompts, in place of max_steps; none: max_steps says how long the training is."""
    dynamic_sampling: bool = False
    """Sample on until prompts_per_step groups have rewards that differ: the others teach nothing (DAPO)."""
    max_rollouts_per_step: Positive = 4
    """Rollouts of prompts_per_step prompts that a step may take for dynamic_sampling."""
    rollout_segment: Count = 64
    """Tokens drawn before rows that have ended leave the rest behind and the cache grows; 0: none ever leaves."""
    rollout_memory: float | None = Field(None, gt=0)
    """GiB on each device for the cache and logits of a rollout: prompts that do not fit wait until others have ended;
    none: what weights and optimizer leave of a device's memory (on CPU: no bound)."""
    reflection: Name | None = None
    """Count responses that recheck, hesitate or explore, and their lengths: `words` for the list that comes along, or a
    YAML file of category: [phrases]; none: do not."""
    log_completions_steps: Count = 10
    """Save a step's completions every so many steps; 0: never."""
    completion_samples: Share = 0.0
    """The share of all completions that go into completion_samples.txt, to be read; mini-R1 takes 0.1; 0: none."""
    success_samples: Share = 0.0
    """The share of those that succeeded that go into success_completion_samples.txt; mini-R1 takes 0.1; 0: none."""
