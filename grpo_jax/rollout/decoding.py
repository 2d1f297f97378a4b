"""Prefill and decode as pure functions on one state: prompts are read into free places, and every row gets tokens.

The weights are those that `models/transformer.for_decoding` returns.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models import attention
from grpo_jax.models.cache import Cache
from grpo_jax.models.transformer import Params, head_logits, hidden_states
from grpo_jax.rollout import repetition
from grpo_jax.rollout.sampling import row_keys, sample_tokens
from grpo_jax.rollout.state import Decoder, DecodeState, SampledTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PrefillBatch:
    """m prompts, each with n / m places for its completions."""

    tokens: Array  # [m,Tp] int32, right-padded
    lengths: Array  # [m] int32
    uids: Array  # [m] uint32, the prompt's identity, from which its random numbers are folded
    places: Array  # [m,n/m] int32; nothing is written to places beyond the table
    limits: Array  # [m,n/m,g] int32, tokens of each completion; 0: the row stays empty
    keys: Array | None = None  # [m,2] uint32, key data of each prompt, in place of the step's key


def prefill(
    decoder: Decoder, params: Params, step_key: Array, state: DecodeState, batch: PrefillBatch
) -> tuple[DecodeState, SampledTokens]:
    """Read each prompt once, put its completions into its places, and sample their first tokens [n,g,1]."""
    places, (m, places_per_prompt, g) = batch.places.reshape(-1), batch.limits.shape
    cache, logits = _read_prompts(decoder, params, state.cache, batch, places)
    rows = len(places), g
    prompt_keys = step_key if batch.keys is None else jax.random.wrap_key_data(batch.keys)
    keys = row_keys(prompt_keys, batch.uids, places_per_prompt * g).reshape(rows)
    new_rows = DecodeState(
        slot=state.slot,
        keys=keys,
        last=jnp.full(rows, decoder.vocabulary.pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        limits=batch.limits.reshape(rows),
        finished=jnp.zeros(rows, bool),
        cache=cache,
        seen=_seen_in_prompts(decoder, batch),
    )
    shared = jnp.broadcast_to(logits[:, None], (m, places_per_prompt * g, logits.shape[1])).reshape(*rows, -1)
    new_rows, token, logprob = _sample(decoder, new_rows, shared)
    sampled = SampledTokens(token[..., None], logprob[..., None], new_rows.lengths, new_rows.finished)
    return _write_rows(state, new_rows, places), sampled


def decode(
    decoder: Decoder, count: int, params: Params, state: DecodeState
) -> tuple[DecodeState, SampledTokens]:
    """Sample up to `count` more tokens for every live row; stops early when no row is live."""
    shape = (*state.last.shape, count)
    blank = jnp.full(shape, decoder.vocabulary.pad_id, jnp.int32), jnp.zeros(shape, jnp.float32)

    def any_live(carry: tuple) -> Array:
        i, state, *_ = carry
        return (i < count) & state.live.any()

    def one_token(carry: tuple) -> tuple:
        i, state, tokens, logprobs = carry
        logits, cache = _next_logits(decoder, params, state)
        state, token, logprob = _sample(decoder, replace(state, cache=cache), logits)
        state = replace(state, slot=(state.slot + 1) % cache.slots)
        put = lambda whole, new: jax.lax.dynamic_update_index_in_dim(whole, new, i, axis=2)
        return i + 1, state, put(tokens, token), put(logprobs, logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(any_live, one_token, (jnp.int32(0), state, *blank))
    return state, SampledTokens(tokens, logprobs, state.lengths, state.finished)


def _read_prompts(
    decoder: Decoder, params: Params, cache: Cache, batch: PrefillBatch, places: Array
) -> tuple[Cache, Array]:
    """The cache with the prompts in it, and the logits [m,V] of their completions' first tokens."""
    positions = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    attend = attention.prefill(places, decoder.attention)
    hidden, filled = hidden_states(decoder.cfg, params, batch.tokens, positions, attend, cache)
    assert filled is not None
    last = jnp.take_along_axis(hidden, batch.lengths[:, None, None] - 1, axis=1)[:, 0]
    lengths = jnp.repeat(batch.lengths, places.size // batch.lengths.size)
    filled = replace(filled, prompt_lengths=filled.prompt_lengths.at[places].set(lengths, mode="drop"))
    return filled, head_logits(decoder.cfg, params, last, decoder.vocabulary.num_tokens)


def _seen_in_prompts(decoder: Decoder, batch: PrefillBatch) -> Array | None:
    """[n,g,V] bool; None without a repetition penalty."""
    if not decoder.sampling.penalises_repetition:
        return None
    _, places, rows = batch.limits.shape
    return repetition.seen_in_prompts(batch.tokens, batch.lengths, places, rows, decoder.cfg.vocab_size)


def _write_rows(state: DecodeState, new_rows: DecodeState, places: Array) -> DecodeState:
    """`state` with `new_rows` [n,g] at `places` [n], and with their cache."""
    put = lambda old, new: old.at[places].set(new, mode="drop")
    names = ("keys", "last", "lengths", "limits", "finished", "seen")
    pairs = {name: (getattr(state, name), getattr(new_rows, name)) for name in names}
    written = {name: jax.tree.map(put, *pair) for name, pair in pairs.items()}  # nothing is written to None
    return replace(state, cache=new_rows.cache, **written)


def _next_logits(decoder: Decoder, params: Params, state: DecodeState) -> tuple[Array, Cache]:
    """Logits [S,g,V] after the tokens sampled last, whose keys and values join the cache."""
    positions = state.cache.prompt_lengths[:, None] + state.lengths - 1
    attend = attention.decode(state.slot[0], state.lengths)
    hidden, cache = hidden_states(
        decoder.cfg, params, state.last.reshape(-1, 1), positions.reshape(-1, 1), attend, state.cache
    )
    assert cache is not None
    hidden = hidden.reshape(*state.last.shape, -1)
    return head_logits(decoder.cfg, params, hidden, decoder.vocabulary.num_tokens), cache


def _sample(decoder: Decoder, state: DecodeState, logits: Array) -> tuple[DecodeState, Array, Array]:
    """The next token of every live row and its log-prob, both [S,g]; the other rows get padding."""
    vocabulary = decoder.vocabulary
    token, logprob = sample_tokens(
        state.keys,
        state.lengths,
        logits,
        decoder.sampling,
        vocabulary.eos_ids,
        vocabulary_first=decoder.on_cpu,
        seen=state.seen,
    )
    live = state.live
    token = jnp.where(live, token, vocabulary.pad_id)
    logprob = jnp.where(live, logprob, 0.0)
    ends = (token[..., None] == jnp.asarray(vocabulary.eos_ids, jnp.int32)).any(-1)
    seen = None if state.seen is None else repetition.with_tokens(state.seen, token, live)
    finished = state.finished | (live & ends)
    after = replace(state, last=token, lengths=state.lengths + live, finished=finished, seen=seen)
    return after, token, logprob
