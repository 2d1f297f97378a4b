"""The sampler: prompts on the host in, a rollout on the host out, by continuous batching.

Completions are sampled in segments. Between segments rows that have ended leave, the others are compacted into a
smaller table, waiting prompts take the free places, and the cache grows by powers of two, so that early tokens do not
attend over slots that are still empty. While a segment runs, the host reads the one before, so the devices never wait
for it. None of this changes which tokens are sampled.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.models.transformer import Params
from grpo_jax.rollout.output_buffer import OutputBuffer
from grpo_jax.rollout.programs import Programs, decoding_program
from grpo_jax.rollout.protocol import OnGroup, OnProgress, OnTokens, PromptTokens, Rollout
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.scheduler import Scheduler
from grpo_jax.rollout.state import Decoder, Vocabulary
from grpo_jax.rollout.stopping import Stop
from grpo_jax.sharding.mesh import on_cpu


class ContinuousBatchingSampler:
    """A `Sampler` (rollout/protocol.py) on a mesh.

    Args:
        seed: of all random numbers; `random_stream` separates the users of one seed, such as training and evaluation.
        segment: tokens of a segment; 0: all.
        rows: completions under way at a time, over all devices; prompts wait until there is room; 0: all.
        stop: strings that end completions.
        cache_dtype: of keys and values: the parameters' own (`auto`) or `int8`.
        attention: the kernel that reads prompts.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        vocabulary: Vocabulary,
        sampling: SamplingParams,
        *,
        num_generations: int,
        max_completion_length: int,
        mesh: Mesh,
        seed: int,
        random_stream: int = 0,
        segment: int = 0,
        rows: int = 0,
        stop: Stop | None = None,
        cache_dtype: str = "auto",
        attention: Kernel = "auto",
    ):
        self.num_generations, self.max_completion_length = num_generations, max_completion_length
        self.pad_id, self.rows, self.mesh, self.stop = vocabulary.pad_id, rows, mesh, stop
        self.segment = max(min(segment or max_completion_length, max_completion_length - 1), 1)
        decoder = Decoder(
            cfg,
            vocabulary,
            sampling,
            on_cpu=on_cpu(mesh),
            cache_dtype=cache_dtype,
            attention=attention,
        )
        self.programs = Programs(decoder, self.segment, mesh)
        self.random_stream = random_stream
        self.key = self._key(seed)

    def __call__(
        self,
        params: Params,
        prompts: PromptTokens,
        step: int,
        *,
        limits: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
        on_tokens: OnTokens | None = None,
        on_progress: OnProgress | None = None,
    ) -> Rollout:
        """As of `Sampler`. `params` are best in the form that `decoding_program` returns; otherwise they are converted
        at each call."""
        if not isinstance(params["layers"], tuple):
            params = decoding_program(self.mesh)(params)
        output = OutputBuffer(
            self._limits(len(prompts.lengths), limits),
            self.max_completion_length,
            self.pad_id,
            self.stop,
            on_tokens,
        )
        scheduler = Scheduler(
            self.programs,
            params,
            key=self.step_key(step),
            prompts=prompts,
            prompt_keys=self._prompt_keys(step, seeds),
            output=output,
            rows=self.rows,
            mesh=self.mesh,
            on_progress=on_progress,
        )
        for prompt in scheduler.run():
            if on_group:
                on_group(prompt, output.ids(prompt))
        return output.rollout

    def step_key(self, step: int, seed: int | None = None) -> Array:
        """The key of all of a step's random numbers, or of the prompts that have a `seed` of their own."""
        return jax.random.fold_in(self.key if seed is None else self._key(seed), step)

    def _limits(self, prompts: int, limits: np.ndarray | None) -> np.ndarray:
        """[P,G] int32, the most tokens of each completion."""
        if limits is None:
            limits = np.full((prompts, self.num_generations), self.max_completion_length, np.int32)
        return np.minimum(limits, self.max_completion_length)

    def _prompt_keys(self, step: int, seeds: Sequence[int] | None) -> np.ndarray | None:
        """[P,2] uint32, the key data of prompts with seeds of their own."""
        if seeds is None:
            return None
        return np.stack([np.asarray(jax.random.key_data(self.step_key(step, seed))) for seed in seeds])

    def _key(self, seed: int) -> Array:
        return jax.random.fold_in(jax.random.key(seed), self.random_stream)

    @property
    def compilations(self) -> int:
        """How many programs were compiled."""
        return self.programs.compilations
