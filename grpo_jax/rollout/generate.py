"""The compiled programs of a rollout: the whole in one dispatch, or in segments between which rows are rearranged."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params
from grpo_jax.programs import Program
from grpo_jax.rollout.decoding import Decoder, Vocabulary, begin, extend, rearrange
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding.mesh import by_rows

__all__ = ["Rollout", "Segments", "Vocabulary", "make_generate"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """What was sampled. The end-of-sequence token is an action: it is stored, counted and scored."""

    tokens: Array  # [P,G,Tc] int32, pad_id after the end
    logprobs: Array  # [P,G,Tc] float32 under the full softmax at the sampling temperature, 0 after the end
    lengths: Array  # [P,G] int32, end-of-sequence included
    finished: Array  # [P,G] bool, False where the length limit cut the completion


def make_generate(
    cfg: ModelConfig, vocabulary: Vocabulary, how: Sampling, samples: int, width: int, mesh: Mesh
) -> Program:
    """The program (params, tokens [P,Tp], lengths [P], uids [P], step key) -> Rollout of `samples` completions a
    prompt, each up to `width` tokens. It compiles once for each (P, Tp)."""
    of = Decoder(cfg, vocabulary, how, width)
    return Program("rollout", partial(_generate, of, samples), out_shardings=by_rows(mesh))


def _generate(
    of: Decoder, samples: int, params: Params, tokens: Array, lengths: Array, uids: Array, step_key: Array
) -> Rollout:
    state, first = begin(of, samples, of.width, params, tokens, lengths, uids, step_key)
    if of.width == 1:
        return Rollout(first.tokens, first.logprobs, first.lengths, first.finished)
    _, rest = extend(of, of.width - 1, params, state)
    join = lambda a, b: jnp.concatenate([a, b], axis=-1)
    return Rollout(
        join(first.tokens, rest.tokens), join(first.logprobs, rest.logprobs), rest.lengths, rest.finished
    )


class Segments:
    """The programs of a rollout in segments of `count` tokens. Each compiles once for each shape of its state.

    begin: (params, tokens [P,Tp], lengths [P], uids [P], step key) -> (state, Drawn of one token).
    extend: (params, state) -> (state, Drawn of `count` tokens); the state is donated.
    rearrange: (state, prompts [P'], samples [P',G']) -> state with `slots` places in the cache.
    """

    def __init__(self, of: Decoder, samples: int, count: int, slots: int, mesh: Mesh):
        out = (
            None,
            by_rows(mesh),
        )  # the state lies where the compiler has it, what is drawn where hosts can read it
        self.begin = Program("begin", partial(begin, of, samples, slots), out_shardings=out)
        self.extend = Program("extend", partial(extend, of, count), donate_argnums=1, out_shardings=out)
        self._rearrange: dict[int, Program] = {}

    def rearrange(self, slots: int) -> Program:
        """The program for a cache with so many places."""
        if slots not in self._rearrange:
            self._rearrange[slots] = Program("rearrange", partial(rearrange, slots), donate_argnums=0)
        return self._rearrange[slots]

    @property
    def compilations(self) -> int:
        """Of all programs."""
        return sum(p.compilations for p in (self.begin, self.extend, *self._rearrange.values()))
