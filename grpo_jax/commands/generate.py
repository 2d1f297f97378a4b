"""The verb `generate`: sample from a model and print the text as it comes."""

from dataclasses import replace

import jax
import numpy as np

from grpo_jax.commands.generate_requests import Request, requests_of
from grpo_jax.commands.generate_stream import Printed
from grpo_jax.config import GenerateConfig
from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.errors import UserError
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.sampling import decoded, sampling_of, stop_of
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts

_SEGMENT = 16  # tokens that are shown at a time
_ROWS = 256  # completions under way at a time, over all devices


def generate_command(config: GenerateConfig) -> int:
    """Print `samples` completions of each prompt, with a line between them where there are several."""
    requests = requests_of(config)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    batch = _batch(config, requests, policy)
    sampler = _sampler(config, policy)
    printed = Printed(
        lambda ids: decoded(policy.tokenizer, ids), len(requests), config.samples, hosts.is_writer()
    )
    with jax.set_mesh(policy.mesh):
        weights = load_sampler(policy)
        sampler(
            weights,
            batch,
            step=0,
            seeds=[request.seed for request in requests],
            on_tokens=printed,
        )
    printed.end()
    return 0


def _batch(config: GenerateConfig, requests: list[Request], policy: Policy) -> PromptBatch:
    """All prompts, in order. UserError for one that leaves no room."""
    longest = policy.cfg.max_position_embeddings
    prompts = Prompts(
        [{"prompt": request.prompt} for request in requests],
        policy.tokenizer,
        max_prompt_length=longest,
        system_prompt=config.system_prompt,
        pad_id=policy.vocabulary.pad_id,
    )
    if prompts.dropped:
        told = f"{prompts.dropped} prompts are longer than the model's {longest} positions"
        raise UserError(f"prompts = {config.prompts!r}: {told}; leave them out")
    uids = np.array([request.uid for request in requests], np.uint32)
    batch = replace(prompts.at(range(len(requests))), uids=uids)
    length = batch.tokens.shape[1] + config.max_completion_length
    policy.check_positions("prompt + max_completion_length", length)
    return batch


def _sampler(config: GenerateConfig, policy: Policy) -> ContinuousBatchingSampler:
    return ContinuousBatchingSampler(
        policy.cfg,
        policy.vocabulary,
        sampling_of(config, policy),
        num_generations=config.samples,
        max_completion_length=config.max_completion_length,
        mesh=policy.mesh,
        seed=config.seed,
        segment=_SEGMENT,
        rows=_ROWS,
        stop=stop_of(config, policy),
        cache_dtype=policy.rollout_cache,
        attention=policy.attention,
    )
