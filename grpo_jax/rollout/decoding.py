"""Decoding as pure functions on one state: prompts are admitted to free places, and tokens are drawn for every row.

Weights are those that `models/qwen.for_decoding` gives.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.attention import decode, prefill
from grpo_jax.models.cache import Cache
from grpo_jax.models.qwen import Params, head_logits, hidden_states
from grpo_jax.rollout.sampling import draw, row_keys
from grpo_jax.rollout.state import Decoder, Decoding, Drawn


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Newcomers:
    """m prompts, each with n / m places for its completions."""

    tokens: Array  # [m,Tp] int32, right-padded
    lengths: Array  # [m] int32
    uids: Array  # [m] uint32, which prompt it is: random numbers depend on it
    places: Array  # [m,n/m] int32; places that do not exist are left out
    limits: Array  # [m,n/m,g] int32, tokens of each completion; 0: this row stays empty
    keys: Array | None = None  # [m,2] uint32, data of a key for each prompt, in place of the step's


def admit(
    of: Decoder, params: Params, step_key: Array, state: Decoding, new: Newcomers
) -> tuple[Decoding, Drawn]:
    """Read each prompt once, put its completions at the places named, and draw their first tokens: [n,g,1]."""
    places, (m, times, g) = new.places.reshape(-1), new.limits.shape
    cache, logits = _prefill(of, params, state.cache, new, places)
    rows = len(places), g
    of_prompts = step_key if new.keys is None else jax.random.wrap_key_data(new.keys)
    keys = row_keys(of_prompts, new.uids, times * g).reshape(rows)
    fresh = Decoding(
        slot=state.slot,
        keys=keys,
        last=jnp.full(rows, of.vocabulary.pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        limits=new.limits.reshape(rows),
        finished=jnp.zeros(rows, bool),
        cache=cache,
    )
    shared = jnp.broadcast_to(logits[:, None], (m, times * g, logits.shape[1])).reshape(*rows, -1)
    fresh, token, logprob = _draw(of, fresh, shared)
    drawn = Drawn(token[..., None], logprob[..., None], fresh.lengths, fresh.finished)
    return _seated(state, fresh, places), drawn


def extend(of: Decoder, count: int, params: Params, state: Decoding) -> tuple[Decoding, Drawn]:
    """Draw up to `count` more tokens of every live row; none when there is none."""
    rows = (*state.last.shape, count)
    blank = jnp.full(rows, of.vocabulary.pad_id, jnp.int32), jnp.zeros(rows, jnp.float32)

    def goes_on(carry: tuple) -> Array:
        i, state, *_ = carry
        return (i < count) & state.live.any()

    def one(carry: tuple) -> tuple:
        i, state, tokens, logprobs = carry
        logits, cache = _next_logits(of, params, state)
        state, token, logprob = _draw(of, replace(state, cache=cache), logits)
        state = replace(state, slot=(state.slot + 1) % cache.slots)
        put = lambda whole, new: jax.lax.dynamic_update_index_in_dim(whole, new, i, axis=2)
        return i + 1, state, put(tokens, token), put(logprobs, logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(goes_on, one, (jnp.int32(0), state, *blank))
    return state, Drawn(tokens, logprobs, state.lengths, state.finished)


def _prefill(of: Decoder, params: Params, cache: Cache, new: Newcomers, places: Array) -> tuple[Cache, Array]:
    """The cache with the prompts in it, and the logits [m,V] of their completions' first tokens."""
    positions = jnp.broadcast_to(jnp.arange(new.tokens.shape[1]), new.tokens.shape)
    hidden, filled = hidden_states(
        of.cfg, params, new.tokens, positions, prefill(places, of.attention), cache
    )
    assert filled is not None
    last = jnp.take_along_axis(hidden, new.lengths[:, None, None] - 1, axis=1)[:, 0]
    lengths = jnp.repeat(new.lengths, places.size // new.lengths.size)
    filled = replace(filled, prompt_lengths=filled.prompt_lengths.at[places].set(lengths, mode="drop"))
    return filled, head_logits(of.cfg, params, last, of.vocabulary.num_tokens)


def _seated(state: Decoding, fresh: Decoding, places: Array) -> Decoding:
    """The state with the rows of `fresh` [n,g] at `places` [n], and fresh's cache."""
    put = lambda all, new: all.at[places].set(new, mode="drop")
    names = ("keys", "last", "lengths", "limits", "finished")
    return replace(
        state, cache=fresh.cache, **{name: put(getattr(state, name), getattr(fresh, name)) for name in names}
    )


def _next_logits(of: Decoder, params: Params, state: Decoding) -> tuple[Array, Cache]:
    """Logits [S,g,V] after the tokens drawn last, whose keys and values join the cache."""
    positions = state.cache.prompt_lengths[:, None] + state.lengths - 1
    attend = decode(state.slot[0], state.lengths)
    hidden, cache = hidden_states(
        of.cfg, params, state.last.reshape(-1, 1), positions.reshape(-1, 1), attend, state.cache
    )
    assert cache is not None
    hidden = hidden.reshape(*state.last.shape, -1)
    return head_logits(of.cfg, params, hidden, of.vocabulary.num_tokens), cache


def _draw(of: Decoder, state: Decoding, logits: Array) -> tuple[Decoding, Array, Array]:
    """The next token of every live row, and its log-prob [S,g]; the other rows take padding."""
    token, logprob = draw(
        state.keys, state.lengths, logits, of.how, of.vocabulary.eos_ids, vocabulary_first=of.on_cpu
    )
    live = state.live
    token = jnp.where(live, token, of.vocabulary.pad_id)
    logprob = jnp.where(live, logprob, 0.0)
    ends = (token[..., None] == jnp.asarray(of.vocabulary.eos_ids, jnp.int32)).any(-1)
    after = replace(state, last=token, lengths=state.lengths + live, finished=state.finished | (live & ends))
    return after, token, logprob
