"""From logits to tokens. A draw depends on (seed, step, prompt, sample, position) alone, and costs one pass
over the vocabulary: an inverse CDF with two uniform numbers a row, not V random numbers, never a full sort.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

_BLOCK = 512  # tokens a block of the inverse CDF: about the square root of V, so that both searches are short


@dataclass(frozen=True)
class Sampling:
    """How to draw. Filters apply in transformers' order: banned tokens, temperature, top-k, top-p, min-p (off: none,
    0, 1, 0)."""

    temperature: float = 1.0  # 0: the most likely token
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    banned: tuple[int, ...] = ()  # ids that are never drawn
    min_tokens: int = 0  # no end-of-sequence id is drawn before so many tokens were


def row_keys(step_key: Array, uids: Array, samples: int) -> Array:
    """Keys [P,G] from the step's key, or one for each prompt [P], each prompt's identity `uids` [P] uint32 and the
    sample's number."""
    one = lambda key, uid, sample: jax.random.fold_in(jax.random.fold_in(key, uid), sample)
    of_prompt = jax.vmap(one, (None, None, 0))
    axes = (0 if step_key.ndim else None, 0, None)
    return jax.vmap(of_prompt, axes)(step_key, uids, jnp.arange(samples))


def draw(
    keys: Array, positions: Array, logits: Array, how: Sampling, eos_ids: tuple[int, ...] = ()
) -> tuple[Array, Array]:
    """Tokens [P,G] int32 and their log-probs [P,G] float32 from float32 logits [P,G,V].

    `positions` [P,G] are those of the tokens in their completions, `eos_ids` what must wait for `how.min_tokens`. The
    log-prob is under the full softmax of logits / temperature, before any filter: what the learner computes by teacher
    forcing. Greedy tokens are scored at temperature 1.

    Inside, the vocabulary comes first: rows lie beside one another, as the head's product leaves them (see
    `models/outputs_first.py`), and every pass over the vocabulary takes them together.
    """
    logits = jnp.moveaxis(logits, -1, 0)
    if how.temperature > 0:
        logits = logits / how.temperature
        allowed = _allowed(positions, logits, how, eos_ids)
        token = _inverse_cdf(keys, positions, _filtered_weights(allowed, how))
    else:
        token = jnp.argmax(_allowed(positions, logits, how, eos_ids), axis=0)
    chosen = jnp.take_along_axis(logits, token[None], axis=0)[0]
    return token.astype(jnp.int32), chosen - _log_total(logits)


def _log_total(logits: Array) -> Array:
    """The logarithm [P,G] of the sum of exp(logits [V,P,G])."""
    peak = logits.max(0)
    return peak + jnp.log(_block_sums(_blocks(jnp.exp(logits - peak))).sum(0))


def _allowed(positions: Array, logits: Array, how: Sampling, eos_ids: tuple[int, ...]) -> Array:
    """The logits [V,P,G], -inf for what must not be drawn at these positions."""
    among = lambda ids: jnp.zeros((len(logits), 1, 1), bool).at[jnp.asarray(ids)].set(True)
    if how.banned:
        logits = jnp.where(among(how.banned), -jnp.inf, logits)
    if how.min_tokens and eos_ids:
        early = jnp.asarray(positions) < how.min_tokens
        logits = jnp.where(early & among(eos_ids), -jnp.inf, logits)
    return logits


def _filtered_weights(logits: Array, how: Sampling) -> Array:
    """Unnormalised probabilities [V,...] in [0, 1], zero for what the filters drop. Threshold ties stay."""
    weights = jnp.exp(logits - logits.max(0))
    contenders = weights
    if 0 < how.top_k < len(logits):
        contenders = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(weights, 0, -1), how.top_k)[0], -1, 0)
        weights = jnp.where(weights >= contenders[-1], weights, 0)
    if how.top_p < 1:
        weights = jnp.where(weights >= _nucleus_threshold(contenders, how.top_p), weights, 0)
    if how.min_p > 0:
        weights = jnp.where(weights >= how.min_p, weights, 0)  # the largest weight is 1
    return weights


def _nucleus_threshold(weights: Array, top_p: float) -> Array:
    """The largest t [...] for which the weights [V,...] >= t hold at least `top_p` of the mass (Holtzman et al.
    2019, arXiv:1904.09751).

    Found exactly by bisection over the bit patterns of floats in [0, 1], which order as integers: 31 passes
    of sums instead of a sort of the vocabulary.
    """
    enough = top_p * weights.sum(0)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.where(weights >= threshold, weights, 0).sum(0)
        return jnp.where(mass >= enough, middle, low), jnp.where(mass >= enough, high, middle)

    above_one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    low = jnp.zeros_like(enough, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, above_one)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _inverse_cdf(keys: Array, positions: Array, weights: Array) -> Array:
    """Token [P,G]: one uniform finds the block, a second the token in it, each to a relative 2^-24."""
    pair = lambda key, position: jax.random.uniform(jax.random.fold_in(key, position), (2,))
    # Multiples of 2^-23, moved to the middle of their steps: an exact 0 would pick the first token, however
    # rare it is.
    uniform = jax.vmap(jax.vmap(pair))(keys, jnp.broadcast_to(positions, keys.shape)) + 2**-24
    blocks = _blocks(weights)
    block = _search(_block_sums(blocks), uniform[..., 0])
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    return block * blocks.shape[1] + _search(inside, uniform[..., 1])


def _blocks(weights: Array) -> Array:
    """[V,P,G] as [blocks,tokens of a block,P,G], with zeros after the last."""
    size = min(_BLOCK, len(weights))
    padded = jnp.pad(weights, [(0, -len(weights) % size), (0, 0), (0, 0)])
    return padded.reshape(-1, size, *weights.shape[1:])


def _block_sums(blocks: Array) -> Array:
    """[blocks,P,G]. The barrier keeps the compiler from adding up the whole vocabulary in one go, where 150,000 float32
    additions one after another would lose digits."""
    return jax.lax.optimization_barrier(blocks.sum(1))


def _search(weights: Array, uniform: Array) -> Array:
    """The first index [...] whose cumulative weight exceeds uniform * total, of weights [n,...]; never one of weight
    zero.

    A parallel cumulative sum can step up by a rounding error where the weight is zero: those places are left
    out.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=0), 0)
    total = cumulative.max(0)
    below = jnp.nextafter(total, jnp.float32(0))  # rounding may bring uniform * total to the total itself
    target = jnp.minimum(uniform * total, below)
    return jnp.argmax(cumulative > target, axis=0)
