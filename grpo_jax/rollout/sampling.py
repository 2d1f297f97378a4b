"""Logits -> tokens. A token depends on (seed, step, prompt, sample, position) alone. Sampling it costs one pass
over the vocabulary: an inverse CDF with two uniform numbers a row, not V random numbers, and never a full sort.
"""

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.rollout.repetition import penalised

_BLOCK = (
    512  # tokens in a block of the inverse CDF: about the square root of V, so that both searches are short
)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. Filters apply in transformers' order: repetition penalty, banned tokens, temperature,
    top-k, top-p, min-p (off: 1, none, -, 0, 1, 0)."""

    temperature: float = 1.0  # 0: the most likely token
    _: KW_ONLY
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    banned: tuple[int, ...] = ()  # ids that are never sampled
    repetition_penalty: float = 1.0  # logits of tokens that the row has seen are divided by it
    min_tokens: int = 0  # no end-of-sequence id is sampled before so many tokens

    @property
    def penalises_repetition(self) -> bool:
        """Whether rows must remember the tokens that they have seen."""
        return self.repetition_penalty != 1


def row_keys(step_key: Array, uids: Array, num_generations: int) -> Array:
    """Keys [P,G], folded from the step's key (or from one key for each prompt [P]), the prompts' identities `uids` [P]
    uint32 and the number of the sample."""
    one = lambda key, uid, sample: jax.random.fold_in(jax.random.fold_in(key, uid), sample)
    all_samples = jax.vmap(one, (None, None, 0))
    axes = (0 if step_key.ndim else None, 0, None)
    return jax.vmap(all_samples, axes)(step_key, uids, jnp.arange(num_generations))


def sample_tokens(
    keys: Array,
    positions: Array,
    logits: Array,
    sampling: SamplingParams,
    eos_ids: tuple[int, ...] = (),
    vocabulary_first: bool = False,
    seen: Array | None = None,
) -> tuple[Array, Array]:
    """Tokens [P,G] int32 and their log-probs [P,G] float32 from float32 logits [P,G,V].

    The log-prob is under the full softmax of logits / temperature, before the repetition penalty and any filter,
    which is what the learner computes by teacher forcing. Greedy tokens are scored at temperature 1.

    Args:
        positions: [P,G] int32, of the tokens in their completions.
        eos_ids: not sampled before `sampling.min_tokens`.
        vocabulary_first: work on [V,P,G], the layout in which matrix products on CPU leave the logits
            (`models/outputs_first.py`); a TPU would pad such arrays to 128 rows. The tokens are the same.
        seen: [P,G,V] bool, tokens of the prompt and of the completion so far; for a repetition penalty only.
    """
    axis = 0 if vocabulary_first else -1
    logits = jnp.moveaxis(logits, -1, axis)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    preferred = logits
    if seen is not None:
        preferred = penalised(logits, jnp.moveaxis(seen, -1, axis), sampling.repetition_penalty)
    allowed = _allowed(positions, preferred, sampling, eos_ids, axis)
    if sampling.temperature > 0:
        token = _inverse_cdf(keys, positions, _filtered_weights(allowed, sampling, axis), axis)
    else:
        token = jnp.argmax(allowed, axis=axis)
    chosen = jnp.take_along_axis(logits, jnp.expand_dims(token, axis), axis=axis).squeeze(axis)
    return token.astype(jnp.int32), chosen - _log_total(logits, axis)


def _log_total(logits: Array, axis: int) -> Array:
    """The logarithm of the sum of exp(logits) along `axis`."""
    peak = logits.max(axis, keepdims=True)
    _, sums = _blocks(jnp.exp(logits - peak), axis)
    return peak.squeeze(axis) + jnp.log(sums.sum(axis))


def _allowed(
    positions: Array, logits: Array, sampling: SamplingParams, eos_ids: tuple[int, ...], axis: int = -1
) -> Array:
    """The logits, -inf for tokens that must not be sampled at these positions [P,G]."""
    if sampling.banned:
        logits = jnp.where(_among(sampling.banned, logits, axis), -jnp.inf, logits)
    if sampling.min_tokens and eos_ids:
        early = jnp.expand_dims(jnp.asarray(positions) < sampling.min_tokens, axis)
        logits = jnp.where(early & _among(eos_ids, logits, axis), -jnp.inf, logits)
    return logits


def _among(ids: tuple[int, ...], logits: Array, axis: int) -> Array:
    """bool [V,1,1] or [1,1,V]: whether each token is one of `ids`."""
    found = jnp.zeros(logits.shape[axis], bool).at[jnp.asarray(ids)].set(True)
    return jnp.moveaxis(found[None, None], -1, axis)


def _filtered_weights(logits: Array, sampling: SamplingParams, axis: int = -1) -> Array:
    """Unnormalised probabilities in [0, 1], zero for tokens that the filters drop. Ties with a threshold are kept."""
    weights = jnp.exp(logits - logits.max(axis, keepdims=True))
    contenders = weights
    if 0 < sampling.top_k < logits.shape[axis]:
        contenders = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(weights, axis, -1), sampling.top_k)[0], -1, axis)
        weights = jnp.where(weights >= contenders.min(axis, keepdims=True), weights, 0)
    if sampling.top_p < 1:
        weights = jnp.where(weights >= _nucleus_threshold(contenders, sampling.top_p, axis), weights, 0)
    if sampling.min_p > 0:
        weights = jnp.where(weights >= sampling.min_p, weights, 0)  # the largest weight is 1
    return weights


def _nucleus_threshold(weights: Array, top_p: float, axis: int = -1) -> Array:
    """The largest t, of size 1 along `axis`, for which the weights >= t hold at least `top_p` of the mass (Holtzman et
    al. 2019, arXiv:1904.09751).

    Found exactly by bisection over the bit patterns of floats in [0, 1], which order as integers: 31 passes of sums
    instead of a sort of the vocabulary.
    """
    enough = top_p * weights.sum(axis, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.where(weights >= threshold, weights, 0).sum(axis, keepdims=True)
        return jnp.where(mass >= enough, middle, low), jnp.where(mass >= enough, high, middle)

    above_one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    low = jnp.zeros_like(enough, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, above_one)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _inverse_cdf(keys: Array, positions: Array, weights: Array, axis: int) -> Array:
    """Tokens [P,G]: one uniform number finds the block, a second one the token in it, each to a relative 2^-24."""
    pair = lambda key, position: jax.random.uniform(jax.random.fold_in(key, position), (2,))
    # Multiples of 2^-23, moved to the middle of their steps: an exact 0 would pick the first token, however rare it
    # is.
    uniform = jax.vmap(jax.vmap(pair))(keys, jnp.broadcast_to(positions, keys.shape)) + 2**-24
    blocks, sums = _blocks(weights, axis)
    block = _search(sums, uniform[..., 0], axis)
    across, within = (0, 1) if axis == 0 else (-2, -1)
    here = jnp.expand_dims(block, (across, within))
    inside = jnp.take_along_axis(blocks, here, axis=across).squeeze(across)
    return block * blocks.shape[within] + _search(inside, uniform[..., 1], axis)


def _blocks(weights: Array, axis: int) -> tuple[Array, Array]:
    """`axis` split into two, blocks and the tokens of a block, padded with zeros; and the sum of each block.

    The barrier keeps the compiler from summing the whole vocabulary in one loop, where 150,000 consecutive float32
    additions would lose digits.
    """
    size = min(_BLOCK, weights.shape[axis])
    padding = [(0, 0)] * weights.ndim
    padding[axis] = 0, -weights.shape[axis] % size
    padded = jnp.pad(weights, padding)
    split = (-1, size, *padded.shape[1:]) if axis == 0 else (*padded.shape[:-1], -1, size)
    blocks = padded.reshape(split)
    return blocks, jax.lax.optimization_barrier(blocks.sum(1 if axis == 0 else -1))


def _search(weights: Array, uniform: Array, axis: int = -1) -> Array:
    """The first index along `axis` whose cumulative weight exceeds uniform * total; never one of weight zero.

    A parallel cumulative sum can step up by a rounding error where the weight is zero: those entries are left out.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=axis), 0)
    total = cumulative.max(axis)
    below = jnp.nextafter(total, jnp.float32(0))  # rounding may bring uniform * total to the total itself
    target = jnp.minimum(uniform * total, below)
    return jnp.argmax(cumulative > jnp.expand_dims(target, axis), axis=axis)
