"""The memory each device needs, and how many completions fit beside it; computed before the first step."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.protocol import Sampler
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding import hosts
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.mesh import row_shards

USABLE = 0.9  # share of a device's memory; the rest is for programs and fragmentation


def training_demand(config: GRPOConfig, policy: Policy) -> Demand:
    """Memory demand of a training run's rollouts."""
    shape = config.prompts_per_step, config.num_generations, config.max_completion_length
    return _demand(policy, *shape, config.max_prompt_length)


def demand_of(policy: Policy, prompts: int, sampler: Sampler, prompt_width: int) -> Demand:
    """Memory demand of a sampler for this many prompts."""
    return _demand(policy, prompts, sampler.num_generations, sampler.max_completion_length, prompt_width)


def _demand(
    policy: Policy, prompts: int, num_generations: int, max_completion_length: int, prompt_width: int
) -> Demand:
    return Demand(
        cfg=policy.cfg,
        dtype=policy.dtype,
        prompts=prompts,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        prompt_width=prompt_width,
        shards=row_shards(policy.mesh),
        tensor=policy.mesh.shape["tensor"],
        cache_dtype=policy.rollout_cache,
    )


def memory_for_rollouts(config: GRPOConfig, policy: Policy, state: Any, reward_models: int = 0) -> int | None:
    """Bytes per device for rollouts: the setting, or what weights, optimizer, reference, reward models and the
    sampler's copy leave of the smallest device. None if the devices report no limit (CPU). Collective; all processes
    get the same value."""
    if config.rollout_memory is not None:
        return int(config.rollout_memory * 2**30)
    smallest = smallest_device(policy)
    if smallest is None:
        return None
    held = sum(held_always(config, policy, state, reward_models).values()) + copy_bytes(policy)
    return int(USABLE * smallest) - held


def smallest_device(policy: Policy) -> int | None:
    """Bytes that a run may use of the smallest device; None if the devices report no limit (CPU). Collective."""
    sizes = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in policy.mesh.local_devices]
    return hosts.min_over_processes(min(sizes, default=0) >> 20) << 20 or None


def rows_at_a_time(demand: Demand, memory: int | None, config: GRPOConfig) -> int:
    """Completions to sample at the same time over all devices; 0: all. UserError if not even one prompt fits."""
    demand = replace(demand, penalises_repetition=config.repetition_penalty != 1)
    rows = 0 if memory is None else demand.rows_within(memory)
    if rows is None:
        given = "none" if config.rollout_memory is None else f"{config.rollout_memory:g}"
        one = demand.peak_bytes(demand.size(1)) / 2**30
        raise UserError(
            f"rollout_memory = {given}: there are {max(memory or 0, 0) / 2**30:.3g} GiB on each device, and one prompt "
            f"with {demand.num_generations} completions of up to {demand.max_completion_length} tokens takes "
            f"{one:.3g} GiB; choose fewer (num_generations, eval_samples), shorter ones (max_completion_length), or "
            "tensor > 1 in mesh"
        )
    return rows


def held_always(config: GRPOConfig, policy: Policy, state: Any, reward_models: int = 0) -> dict[str, int]:
    """Bytes held on each device during the whole run, by purpose; `reward_models` are the bytes of reward models."""
    weights, here = bytes_of(state.params), config.beta > 0 and config.reference_memory == "device"
    return {
        **(
            {"weights": weights}
            if policy.lora is None
            else {"adapters": weights, "frozen weights": _base(policy)}
        ),
        "optimizer": bytes_of(state.opt_state),
        "reference": int(weights / 4 * jnp.dtype(policy.dtype).itemsize) if here else 0,
        **({"reward models": reward_models} if reward_models else {}),
    }


def copy_bytes(policy: Policy) -> int:
    """Bytes of the sampler's weights on each device."""
    return _laid(policy.abstract_rollout(), policy.rollout_shardings())


def _base(policy: Policy) -> int:
    base = policy.abstract_base()
    return 0 if base is None else _laid(base.params, policy.base_shardings())


def _laid(shapes: Any, layout: Any) -> int:
    each = lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(jax.tree.leaves(jax.tree.map(each, shapes, layout)))
