"""The sampler as the verbs use it: host arrays in, a rollout on the devices out, one program for each shape."""

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params
from grpo_jax.rollout.generate import Rollout, Vocabulary, make_generate
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows


class Sampler:
    """Draws `samples` completions of up to `width` tokens for each prompt.

    `purpose` separates streams of random numbers of one seed: training and evaluation never share any.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        vocabulary: Vocabulary,
        how: Sampling,
        *,
        samples: int,
        width: int,
        mesh: Mesh,
        seed: int,
        purpose: int = 0,
    ):
        self.program = make_generate(cfg, vocabulary, how, samples, width, mesh)
        self.rows = by_rows(mesh)
        self.key = jax.random.fold_in(jax.random.key(seed), purpose)

    def __call__(
        self, params: Params, tokens: np.ndarray, lengths: np.ndarray, uids: np.ndarray, step: int
    ) -> Rollout:
        """A rollout for prompts [P,Tp] int32 (right-padded) of `lengths` [P], known by `uids` [P] uint32.

        `params` are in the rollout's dtype and layout.
        """
        put = lambda x, dtype: hosts.put(np.asarray(x, dtype), self.rows)
        prompts = put(tokens, np.int32), put(lengths, np.int32), put(uids, np.uint32)
        return self.program(params, *prompts, self.step_key(step))

    def step_key(self, step: int) -> Array:
        """The key from which all of a step's random numbers come."""
        return jax.random.fold_in(self.key, step)


def fetch(rollout: Rollout) -> Rollout:
    """The same rollout as NumPy arrays, whole on every host."""
    return jax.tree.map(hosts.get, rollout)
