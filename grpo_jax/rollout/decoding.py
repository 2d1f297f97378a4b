"""Decoding as pure functions on one state: begin with the prompts, draw some more tokens, rearrange the rows.

The rows of a state are a rectangle: P prompts with G completions each, all at the same position, so that one slice
of the cache takes every row's new keys. What is drawn for a row depends on its key and position alone, and so not on
the rectangle that it stands in, nor on how many tokens are drawn at a time.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.attention import decode, prefill
from grpo_jax.models.cache import Cache, empty_cache
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, head_logits, hidden_states
from grpo_jax.rollout.sampling import Sampling, draw, row_keys
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
    width: int  # tokens of a completion at most


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """Where the rows are."""

    position: Array  # [] int32, tokens drawn so far
    keys: Array  # [P,G] random keys
    last: Array  # [P,G] int32, the tokens drawn last; their keys and values are not in the cache yet
    lengths: Array  # [P,G] int32, tokens drawn until the row ended
    finished: Array  # [P,G] bool
    cache: Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """Tokens of n positions."""

    tokens: Array  # [P,G,n] int32, pad_id after the end
    logprobs: Array  # [P,G,n] float32, 0 after the end
    lengths: Array  # [P,G] int32, of the completions with them
    finished: Array  # [P,G] bool, with them


def begin(
    of: Decoder,
    samples: int,
    slots: int,
    params: Params,
    tokens: Array,
    lengths: Array,
    uids: Array,
    step_key: Array,
) -> tuple[Decoding, Drawn]:
    """Read each prompt of tokens [P,Tp], lengths [P] once, and draw the first token of its `samples` completions. The
    cache has `slots` places for each completion."""
    cache, logits = _prefill(of, samples, slots, params, tokens, lengths)
    rows = tokens.shape[0], samples
    start = Decoding(
        position=jnp.int32(0),
        keys=row_keys(step_key, uids, samples),
        last=jnp.full(rows, of.vocabulary.pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        finished=jnp.zeros(rows, bool),
        cache=cache,
    )
    state, token, logprob = _draw(of, start, jnp.broadcast_to(logits[:, None], (*rows, logits.shape[1])))
    return state, Drawn(token[..., None], logprob[..., None], state.lengths, state.finished)


def extend(of: Decoder, count: int, params: Params, state: Decoding) -> tuple[Decoding, Drawn]:
    """Draw up to `count` more tokens of every row that has not ended; none when all have."""
    rows = (*state.last.shape, count)
    blank = jnp.full(rows, of.vocabulary.pad_id, jnp.int32), jnp.zeros(rows, jnp.float32)

    def goes_on(carry: tuple) -> Array:
        i, state, *_ = carry
        return (i < count) & (state.position < of.width) & ~state.finished.all()

    def one(carry: tuple) -> tuple:
        i, state, tokens, logprobs = carry
        logits, cache = _next_logits(of, params, state)
        state, token, logprob = _draw(of, replace(state, cache=cache), logits)
        put = lambda whole, new: jax.lax.dynamic_update_index_in_dim(whole, new, i, axis=2)
        return i + 1, state, put(tokens, token), put(logprobs, logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(goes_on, one, (jnp.int32(0), state, *blank))
    return state, Drawn(tokens, logprobs, state.lengths, state.finished)


def rearrange(slots: int, state: Decoding, prompts: Array, samples: Array) -> Decoding:
    """The rows `samples` [P',G'] of the prompts `prompts` [P'], with `slots` places in the cache for each."""
    rows = prompts[:, None], samples
    cache = state.cache
    own = lambda x: _widened(x[:, *rows], slots)
    picked = Cache(
        cache.prompt_k[:, prompts],
        cache.prompt_v[:, prompts],
        cache.prompt_lengths[prompts],
        own(cache.own_k),
        own(cache.own_v),
    )
    of_rows = state.keys[rows], state.last[rows], state.lengths[rows], state.finished[rows]
    return Decoding(state.position, *of_rows, on_mesh(picked))


def _widened(x: Array, slots: int) -> Array:
    """[L,P,G,K,slots,H]"""
    return jnp.pad(x, [(0, 0)] * 4 + [(0, slots - x.shape[4]), (0, 0)])


def _prefill(
    of: Decoder, samples: int, slots: int, params: Params, tokens: Array, lengths: Array
) -> tuple[Cache, Array]:
    """The prompts' part of the cache, and the logits [P,V] of the first completion token."""
    dtype = params["norm"]["scale"].dtype
    cache = on_mesh(empty_cache(of.cfg, lengths, samples, tokens.shape[1], slots, dtype))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, filled = hidden_states(of.cfg, params, tokens, positions, prefill, cache)
    assert filled is not None
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return filled, head_logits(of.cfg, params, last, of.vocabulary.num_tokens)


def on_mesh(cache: Cache) -> Cache:
    """Prompts over the row axes, key/value heads over `tensor`: a row's cache lives where its heads are computed."""
    prompt = lambda x: constrain(x, None, ROWS, "tensor")  # [L,P,K,Tp,H]
    own = lambda x: constrain(x, None, ROWS, None, "tensor")  # [L,P,G,K,slots,H]
    return replace(
        cache,
        prompt_k=prompt(cache.prompt_k),
        prompt_v=prompt(cache.prompt_v),
        own_k=own(cache.own_k),
        own_v=own(cache.own_v),
    )


def _next_logits(of: Decoder, params: Params, state: Decoding) -> tuple[Array, Cache]:
    """Logits [P,G,V] after the tokens drawn last, whose keys and values join the cache."""
    written = state.position - 1
    samples = state.last.shape[1]
    positions = jnp.repeat(state.cache.prompt_lengths + written, samples)[:, None]
    rows = state.last.reshape(-1, 1)
    hidden, cache = hidden_states(of.cfg, params, rows, positions, decode(written), state.cache)
    assert cache is not None
    logits = head_logits(of.cfg, params, hidden.reshape(*state.last.shape, -1), of.vocabulary.num_tokens)
    return logits, cache


def _draw(of: Decoder, state: Decoding, logits: Array) -> tuple[Decoding, Array, Array]:
    """The next token of every row that has not ended, and its log-prob [P,G]; rows that have ended take padding."""
    token, logprob = draw(state.keys, state.position, logits, of.how)
    token = jnp.where(state.finished, of.vocabulary.pad_id, token)
    logprob = jnp.where(state.finished, 0.0, logprob)
    ends = (token[..., None] == jnp.asarray(of.vocabulary.eos_ids, jnp.int32)).any(-1)
    after = replace(
        state,
        position=state.position + 1,
        last=token,
        lengths=state.lengths + ~state.finished,
        finished=state.finished | ends,
    )
    return after, token, logprob
