"""The sampler as the verbs use it: host arrays in, a rollout on the host out.

Completions are drawn in segments. Between them rows that have ended leave, what is left moves into a smaller table,
waiting prompts take the free places, and the cache grows by powers of two, so that early tokens do not attend over
slots that are still empty. While a segment runs, the host reads the one before: the devices never wait for it.
Nothing of this changes what is drawn.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.models.qwen import Params
from grpo_jax.rollout.output_buffer import Collected, OnTokens
from grpo_jax.rollout.programs import Programs, Rollout, decoding_program
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.rollout.scheduler import Prompts, Session
from grpo_jax.rollout.state import Decoder, Vocabulary
from grpo_jax.rollout.stopping import Stop
from grpo_jax.sharding.mesh import on_cpu

OnGroup = Callable[[int, list[list[int]]], None]


class Sampler:
    """Draws `samples` completions of up to `width` tokens for each prompt, `segment` tokens at a time (0: all), with
    `rows` completions under way at most, over all devices (0: all); prompts wait until there is room.

    `stop` ends completions at its strings. `cache`: keys and values in the parameters' dtype (`auto`) or in `int8`.
    `attention`: the kernel that reads prompts.
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
        segment: int = 0,
        rows: int = 0,
        stop: Stop | None = None,
        cache: str = "auto",
        attention: Kernel = "auto",
    ):
        self.samples, self.width, self.pad_id = samples, width, vocabulary.pad_id
        self.segment = max(min(segment or width, width - 1), 1)
        self.rows, self.mesh, self.stop = rows, mesh, stop
        of = Decoder(cfg, vocabulary, how, on_cpu(mesh), cache, attention)
        self.programs = Programs(of, self.segment, mesh)
        self.purpose = purpose
        self.key = self._key(seed)

    def __call__(
        self,
        params: Params,
        tokens: np.ndarray,
        lengths: np.ndarray,
        uids: np.ndarray,
        step: int,
        *,
        limits: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Rollout:
        """A rollout, NumPy arrays whole on every host, for prompts [P,Tp] int32 (right-padded) of `lengths` [P],
        known by `uids` [P] uint32. Every process must call it.

        Args:
            params: in the rollout's dtype and layout, and best in the form that `decoding_program` gives them, or they
                are brought to it at each call.
            limits: [P,G] int32, tokens of each completion at most, where not all are `width`.
            seeds: one for each prompt, in place of the sampler's own.
            on_group: called with a prompt's number and its completions' tokens as soon as all of them have ended.
            on_tokens: called with (prompt, sample, its next tokens, whether they are the last) as they are read.
        """
        if limits is None:
            limits = np.full((len(lengths), self.samples), self.width, np.int32)
        limits = np.minimum(limits, self.width)
        if not isinstance(params["layers"], tuple):
            params = decoding_program(self.mesh)(params)
        collected = Collected(limits, self.width, self.pad_id, self.stop, on_tokens)
        keys = None if seeds is None else np.stack([self._key_data(step, seed) for seed in seeds])
        prompts = Prompts(np.asarray(tokens), np.asarray(lengths), np.asarray(uids), keys)
        key = self.step_key(step)
        session = Session(self.programs, params, key, prompts, collected, self.rows, self.mesh)
        for p in session.groups():
            if on_group:
                on_group(p, collected.ids(p))
        return collected.rollout

    def step_key(self, step: int, seed: int | None = None) -> Array:
        """The key from which all of a step's random numbers come, or those of prompts with a `seed` of their own."""
        return jax.random.fold_in(self.key if seed is None else self._key(seed), step)

    def _key(self, seed: int) -> Array:
        return jax.random.fold_in(jax.random.key(seed), self.purpose)

    def _key_data(self, step: int, seed: int) -> np.ndarray:
        return np.asarray(jax.random.key_data(self.step_key(step, seed)))

    @property
    def compilations(self) -> int:
        """How many programs were compiled."""
        return self.programs.compilations
