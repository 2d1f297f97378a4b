"""The verb `generate`: sample from a model and print the text."""

import jax
import numpy as np

from grpo_jax.config import GenerateConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.policy import Policy, open_policy
from grpo_jax.rollout.generate import Rollout
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import row_shards


def generate_command(config: GenerateConfig) -> int:
    """Print `samples` completions of the prompt, with a line between them where there are several."""
    policy = open_policy(config, rollout_weights=config.rollout_weights)
    rollout = _sample(config, policy)
    texts = [
        policy.tokenizer.decode(row[:n], skip_special_tokens=True)
        for row, n in zip(rollout.tokens[0], rollout.lengths[0])
    ]
    if hosts.is_writer():
        print("\n---\n".join(texts))
    return 0


def _sample(config: GenerateConfig, policy: Policy) -> Rollout:
    prompt = [{"role": "user", "content": config.prompt}] if config.chat else config.prompt
    batch = Prompts(
        [{"prompt": prompt}],
        policy.tokenizer,
        prompts_per_step=1,
        max_prompt_length=policy.cfg.max_position_embeddings,
        system_prompt=config.system_prompt,
        pad_id=policy.vocabulary.pad_id,
    )(0)
    length = batch.tokens.shape[1] + config.max_completion_length
    policy.check_positions("prompt + max_completion_length", length)
    sampler = Sampler(
        policy.cfg,
        policy.vocabulary,
        Sampling(config.temperature, config.top_k, config.top_p, config.min_p),
        samples=config.samples,
        width=config.max_completion_length,
        mesh=policy.mesh,
        seed=config.seed,
    )
    copies = row_shards(policy.mesh)  # every shard of the rows needs a prompt; the copies are ignored
    repeat = lambda x: np.repeat(x, copies, axis=0)
    with jax.set_mesh(policy.mesh):
        weights = policy.load_rollout_weights()
        return sampler(weights, repeat(batch.tokens), repeat(batch.lengths), repeat(batch.uids), step=0)
