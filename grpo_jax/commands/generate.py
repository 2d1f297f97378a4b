"""The verb `generate`: sample from a model and print the text as it comes."""

from dataclasses import replace

import jax
import numpy as np

from grpo_jax.commands.generate_requests import Request, requests_of
from grpo_jax.commands.generate_stream import StreamPrinter
from grpo_jax.config import GenerateConfig
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.data.prompts import PromptBatch
from grpo_jax.errors import UserError
from grpo_jax.rollout.protocol import Sampler
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.sampling import decode_text, make_sampler
from grpo_jax.setup.status import with_status
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts

_SEGMENT = 16  # tokens that are printed at a time
_ROWS = 256  # completions under way at a time, over all devices


@with_status
def generate_command(config: GenerateConfig) -> int:
    """Print `samples` completions of each prompt, with a line between them if there are several."""
    requests = requests_of(config)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    batch = _batch(config, requests, policy)
    sampler = _sampler(config, policy)
    printer = StreamPrinter(
        lambda ids: decode_text(policy.tokenizer, ids),
        prompts=len(requests),
        num_generations=config.samples,
        enabled=hosts.is_writer(),
    )
    with jax.set_mesh(policy.mesh):
        weights, seeds = load_sampler(policy), [request.seed for request in requests]
        sampler(weights, batch, step=0, seeds=seeds, on_tokens=printer)
    printer.end()
    return 0


def _batch(config: GenerateConfig, requests: list[Request], policy: Policy) -> PromptBatch:
    """All prompts, in order. UserError for one that leaves no room for a completion."""
    longest = policy.cfg.max_position_embeddings
    settings = PromptSettings(system_prompt=config.system_prompt, max_prompt_length=longest)
    prompts = make_prompts(settings, policy, [{"prompt": request.prompt} for request in requests])
    if prompts.dropped:
        raise UserError(
            f"prompts = {config.prompts!r}: {prompts.dropped} prompts are longer than the model's {longest} positions; "
            "leave them out"
        )
    uids = np.array([request.uid for request in requests], np.uint32)
    batch = replace(prompts.at(range(len(requests))), uids=uids)
    length = batch.tokens.shape[1] + config.max_completion_length
    policy.check_positions("prompt + max_completion_length", length)
    return batch


def _sampler(config: GenerateConfig, policy: Policy) -> Sampler:
    return make_sampler(
        config, policy, num_generations=config.samples, seed=config.seed, segment=_SEGMENT, rows=_ROWS
    )
