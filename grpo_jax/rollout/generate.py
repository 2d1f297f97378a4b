"""One compiled rollout: prefill each prompt once, then decode its G completions token by token, in one dispatch."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.attention import decode, prefill
from grpo_jax.models.cache import Cache, empty_cache
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, head_logits, hidden_states
from grpo_jax.programs import Program
from grpo_jax.rollout.sampling import Sampling, draw, row_keys
from grpo_jax.sharding.constraints import constrain
from grpo_jax.sharding.mesh import ROWS, by_rows


@dataclass(frozen=True)
class Vocabulary:
    """The ids that generation must know."""

    eos_ids: tuple[int, ...]  # each of them ends a completion
    pad_id: int
    num_tokens: int  # ids from here on are padding of the embedding and never sampled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """What was sampled. The end-of-sequence token is an action: it is stored, counted and scored."""

    tokens: Array  # [P,G,Tc] int32, pad_id after the end
    logprobs: Array  # [P,G,Tc] float32 under the full softmax at the sampling temperature, 0 after the end
    lengths: Array  # [P,G] int32, end-of-sequence included
    finished: Array  # [P,G] bool, False where the length limit cut the completion


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """The loop's state."""

    position: Array  # [] int32, the completion position to fill next
    last: Array  # [P,G] int32, the tokens just drawn
    rollout: Rollout
    cache: Cache


def make_generate(
    cfg: ModelConfig, vocabulary: Vocabulary, how: Sampling, samples: int, width: int, mesh: Mesh
) -> Program:
    """The program (params, tokens [P,Tp], lengths [P], uids [P], step key) -> Rollout of `samples` completions a
    prompt, each up to `width` tokens. It compiles once for each (P, Tp)."""
    function = partial(_generate, cfg, vocabulary, how, samples, width)
    return Program("rollout", function, out_shardings=by_rows(mesh))


def _generate(
    cfg: ModelConfig,
    vocabulary: Vocabulary,
    how: Sampling,
    samples: int,
    width: int,
    params: Params,
    tokens: Array,
    lengths: Array,
    uids: Array,
    step_key: Array,
) -> Rollout:
    keys = row_keys(step_key, uids, samples)

    def extend(state: _Decoding) -> _Decoding:
        logits, cache = _next_logits(cfg, params, state, lengths, vocabulary.num_tokens)
        return _append(replace(state, cache=cache), *draw(keys, state.position, logits, how), vocabulary)

    def unfinished(state: _Decoding) -> Array:
        return (state.position < width) & ~state.rollout.finished.all()

    cache, logits = _prefill(cfg, params, tokens, lengths, samples, width, vocabulary.num_tokens)
    start = _start(cache, samples, width, vocabulary.pad_id)
    shared = jnp.broadcast_to(logits[:, None], (logits.shape[0], samples, logits.shape[1]))
    first = _append(start, *draw(keys, start.position, shared, how), vocabulary)
    return jax.lax.while_loop(unfinished, extend, first).rollout


def _prefill(
    cfg: ModelConfig, params: Params, tokens: Array, lengths: Array, samples: int, width: int, num_tokens: int
) -> tuple[Cache, Array]:
    """The prompts' part of the cache, and the logits [P,V] of the first completion token."""
    dtype = params["norm"]["scale"].dtype
    cache = _on_mesh(empty_cache(cfg, lengths, samples, tokens.shape[1], width, dtype))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, filled = hidden_states(cfg, params, tokens, positions, prefill, cache)
    assert filled is not None
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return filled, head_logits(cfg, params, last, num_tokens)


def _on_mesh(cache: Cache) -> Cache:
    """Prompts over the row axes, key/value heads over `tensor`: a row's cache lives where its heads are computed."""
    prompt = lambda x: constrain(x, None, ROWS, "tensor")  # [L,P,K,Tp,H]
    own = lambda x: constrain(x, None, ROWS, None, "tensor")  # [L,P,G,K,Tc,H]
    return replace(
        cache,
        prompt_k=prompt(cache.prompt_k),
        prompt_v=prompt(cache.prompt_v),
        own_k=own(cache.own_k),
        own_v=own(cache.own_v),
    )


def _start(cache: Cache, samples: int, width: int, pad_id: int) -> _Decoding:
    rows = (cache.prompt_lengths.shape[0], samples)
    rollout = Rollout(
        tokens=jnp.full((*rows, width), pad_id, jnp.int32),
        logprobs=jnp.zeros((*rows, width), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        finished=jnp.zeros(rows, bool),
    )
    return _Decoding(jnp.int32(0), jnp.full(rows, pad_id, jnp.int32), rollout, cache)


def _next_logits(
    cfg: ModelConfig, params: Params, state: _Decoding, lengths: Array, num_tokens: int
) -> tuple[Array, Cache]:
    """Logits [P,G,V] after the tokens just drawn, whose keys and values join the cache."""
    written = state.position - 1
    rows = state.last.reshape(-1, 1)
    positions = jnp.repeat(lengths + written, state.last.shape[1])[:, None]
    hidden, cache = hidden_states(cfg, params, rows, positions, decode(written), state.cache)
    assert cache is not None
    return head_logits(cfg, params, hidden.reshape(*state.last.shape, -1), num_tokens), cache


def _append(state: _Decoding, token: Array, logprob: Array, vocabulary: Vocabulary) -> _Decoding:
    """Write a position of every row that has not ended; rows that have ended take padding."""
    before, at = state.rollout, state.position
    token = jnp.where(before.finished, vocabulary.pad_id, token)
    logprob = jnp.where(before.finished, 0.0, logprob)
    ends = (token[..., None] == jnp.asarray(vocabulary.eos_ids, jnp.int32)).any(-1)
    after = Rollout(
        tokens=jax.lax.dynamic_update_index_in_dim(before.tokens, token, at, axis=2),
        logprobs=jax.lax.dynamic_update_index_in_dim(before.logprobs, logprob, at, axis=2),
        lengths=before.lengths + ~before.finished,
        finished=before.finished | ends,
    )
    return replace(state, position=at + 1, last=token, rollout=after)
