"""What the programs of a rollout work on: a table of rows, one row a completion.

The table has S places with g rows each. A place holds one prompt, and its rows are completions of that prompt; a prompt
with more than g completions takes several places. Rows are independent: each has its own position, and the tokens
sampled for it depend on its key and position alone, not on where in the table it is.
"""

from dataclasses import KW_ONLY, dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, Layer, empty_cache
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.rollout import repetition
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.sharding.constraints import constrain
from grpo_jax.sharding.mesh import ROWS


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that generation must know."""

    eos_ids: tuple[int, ...]  # each of them ends a completion
    pad_id: int
    num_tokens: int  # ids from here on are padding of the embedding and never sampled


@dataclass(frozen=True)
class Decoder:
    """Everything about decoding that is fixed when a program is compiled."""

    cfg: ModelConfig
    vocabulary: Vocabulary
    sampling: SamplingParams
    _: KW_ONLY
    on_cpu: bool = False  # weights and logits are laid out as CPUs read them fastest
    cache_dtype: str = "auto"  # of keys and values: the compute dtype, or int8
    attention: Kernel = "auto"  # the kernel that reads prompts


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecodeState:
    """The rows of the table and their cache."""

    slot: Array  # [1] int32, the slot of the cache's ring that takes the next keys and values
    keys: Array  # [S,g] random keys
    last: Array  # [S,g] int32, the tokens sampled last; their keys and values are not in the cache yet
    lengths: Array  # [S,g] int32, tokens sampled
    limits: Array  # [S,g] int32, tokens at most; 0: the row is empty
    finished: Array  # [S,g] bool, whether an end-of-sequence token was sampled
    cache: Cache
    seen: Array | None = None  # [S,g,V] bool, tokens of prompt and completion; with a repetition penalty only

    @property
    def live(self) -> Array:
        """[S,g] bool, rows that need more tokens."""
        return ~self.finished & (self.lengths < self.limits)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampledTokens:
    """The next n tokens of rows [S,g]."""

    tokens: Array  # [S,g,n] int32, pad_id after the end
    logprobs: Array  # [S,g,n] float32, 0 after the end
    lengths: Array  # [S,g] int32, of the completions, these tokens included
    finished: Array  # [S,g] bool, these tokens included


@dataclass(frozen=True)
class TableSize:
    """The size of the table on each shard of the mesh."""

    places: int  # S
    rows: int  # g, of a place
    slots: int  # of a row in the cache's ring


def empty_state(decoder: Decoder, size: TableSize, prompt_width: int, dtype: jnp.dtype) -> DecodeState:
    """A table whose rows are all empty, for prompts padded to `prompt_width` tokens."""
    rows = size.places, size.rows
    cache = empty_cache(decoder.cfg, *rows, prompt_width, size.slots, dtype, decoder.cache_dtype)
    zeros = lambda: jnp.zeros(rows, jnp.int32)
    return DecodeState(
        slot=jnp.zeros(1, jnp.int32),
        keys=jnp.broadcast_to(jax.random.key(0), rows),
        last=zeros(),
        lengths=zeros(),
        limits=zeros(),
        finished=jnp.zeros(rows, bool),
        cache=replace(cache, layers=tuple(map(layer_on_mesh, cache.layers))),
        seen=_none_seen(decoder, size),
    )


def _none_seen(decoder: Decoder, size: TableSize) -> Array | None:
    if not decoder.sampling.penalises_repetition:
        return None
    return repetition.on_mesh(jnp.zeros((size.places, size.rows, decoder.cfg.vocab_size), bool))


def layer_on_mesh(layer: Layer) -> Layer:
    """Split places over the row axes and key/value heads over `tensor`, so that a row's cache is where its heads are
    computed."""
    of_prompts = lambda x: constrain(x, ROWS, "tensor")  # [S,K,...]
    of_rows = lambda x, _: constrain(x, ROWS, None, "tensor")  # [S,g,K,...]
    return layer.mapped(of_prompts, of_rows)
