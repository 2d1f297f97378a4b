"""What decoding works on: who decodes and how, and where the rows are.

A state is a table of S places with g rows each. A place has one prompt, and its rows are completions of it; a prompt
with more completions stands at several places. Rows are independent: each has its own position, and what is drawn
for it depends on its key and position alone, and so not on the table that it stands in.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, Layer, empty_cache
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding.constraints import constrain
from grpo_jax.sharding.mesh import ROWS


@dataclass(frozen=True)
class Vocabulary:
    """The ids that generation must know."""

    eos_ids: tuple[int, ...]  # each of them ends a completion
    pad_id: int
    num_tokens: int  # ids from here on are padding of the embedding and never sampled


@dataclass(frozen=True)
class Decoder:
    """How a model decodes."""

    cfg: ModelConfig
    vocabulary: Vocabulary
    how: Sampling
    on_cpu: bool = False  # weights and logits lie as CPUs read them fastest
    cache: str = "auto"  # keys and values in the dtype that is computed in, or int8
    attention: Kernel = "auto"  # that reads prompts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """Where the rows are."""

    slot: Array  # [1] int32, the slot of the cache's ring that takes the next keys and values
    keys: Array  # [S,g] random keys
    last: Array  # [S,g] int32, the tokens drawn last; their keys and values are not in the cache yet
    lengths: Array  # [S,g] int32, tokens drawn
    limits: Array  # [S,g] int32, tokens at most; 0: nobody is here
    finished: Array  # [S,g] bool, whether an end-of-sequence token was drawn
    cache: Cache

    @property
    def live(self) -> Array:
        """[S,g] bool, rows for which more is drawn."""
        return ~self.finished & (self.lengths < self.limits)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """Tokens of n positions for rows [S,g]."""

    tokens: Array  # [S,g,n] int32, pad_id after the end
    logprobs: Array  # [S,g,n] float32, 0 after the end
    lengths: Array  # [S,g] int32, of the completions with them
    finished: Array  # [S,g] bool, with them


@dataclass(frozen=True)
class Size:
    """How large a table is, on each part of the mesh that has rows of its own."""

    places: int  # S
    rows: int  # g, of a place
    slots: int  # of a row in the cache's ring


def blank(of: Decoder, size: Size, prompt_width: int, dtype: jnp.dtype) -> Decoding:
    """A table where nobody stands."""
    rows = size.places, size.rows
    cache = empty_cache(of.cfg, *rows, prompt_width, size.slots, dtype, of.cache)
    zeros = lambda: jnp.zeros(rows, jnp.int32)
    return Decoding(
        slot=jnp.zeros(1, jnp.int32),
        keys=jnp.broadcast_to(jax.random.key(0), rows),
        last=zeros(),
        lengths=zeros(),
        limits=zeros(),
        finished=jnp.zeros(rows, bool),
        cache=replace(cache, layers=tuple(map(layer_on_mesh, cache.layers))),
    )


def layer_on_mesh(layer: Layer) -> Layer:
    """Places over the row axes, key/value heads over `tensor`: a row's cache lies where its heads are computed."""
    prompt = lambda x: constrain(x, ROWS, "tensor")  # [S,K,...]
    own = lambda x, _: constrain(x, ROWS, None, "tensor")  # [S,g,K,...]
    return layer.mapped(prompt, own)
