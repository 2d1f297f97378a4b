"""Attention of a block: over whole rows (training, scoring), for prefilling the prompts' cache, and for decoding.

The block passes its queries, keys and values to `attend` and gets the attended values; nothing else of the model
differs between training and sampling. `attend(layer, q, k, v, cache) -> (out, cache)`, where q and out are
[B,T,N,H], k and v [B,T,K,H], and `cache` is passed from layer to layer (None in training). `layer` is the layer's
number: an int in an unrolled loop, as with a cache, and traced in a scan.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache
from grpo_jax.models.entries import Entries, scaled, values_of
from grpo_jax.models.kernels import Kernel, causal_attention

Attend = Callable[[Any, Array, Array, Array, Cache | None], tuple[Array, Cache | None]]


def whole_rows(kernel: Kernel, segments: Array | None = None) -> Attend:
    """Causal attention of rows padded on the right, which needs no mask for the padding. With `segments` [B,T] (packed
    rows), a token attends only to tokens of its own segment."""

    def attend(layer: Any, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        return causal_attention(q, k, v, kernel, segments), cache

    return attend


causal = whole_rows("auto")


def shared_prompt(width: int, samples: int, lengths: Array, kernel: Kernel = "auto") -> Attend:
    """Attention of rows [prompt | completion 1 | ... | completion g]; the prompt has `width` positions, of which
    `lengths` [B] are tokens. The prompt attends causally; a completion attends to the prompt and to itself."""

    def attend(layer: Any, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        (prompt_q, own_q), (prompt_k, own_k), (prompt_v, own_v) = (
            jnp.split(x, [width], axis=1) for x in (q, k, v)
        )
        of_prompt = causal_attention(prompt_q, prompt_k, prompt_v, kernel)
        apart = lambda x: x.reshape(x.shape[0], samples, -1, *x.shape[2:])  # [B,g,T,heads,H]
        seen = jnp.arange(width) < lengths[:, None]
        of_own = _beside_prompt(apart(own_q), prompt_k, prompt_v, apart(own_k), apart(own_v), seen)
        return jnp.concatenate([of_prompt, of_own.reshape(own_q.shape)], axis=1), cache

    return attend


def _beside_prompt(q: Array, prompt_k: Array, prompt_v: Array, k: Array, v: Array, seen: Array) -> Array:
    """Attention [B,g,T,N,H] of completions with q, k and v [B,g,T,..,H] over themselves and over the `seen` [B,Tp]
    tokens of a prompt with keys and values [B,Tp,K,H], in one softmax."""
    B, g, T, N, H = q.shape
    Tp, K = prompt_k.shape[1:3]
    q = q.reshape(B, g, T, K, N // K, H) * jnp.asarray(H**-0.5, q.dtype)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_prompt = jnp.where(seen[:, None, None, None, None], dot("bgtkrh,bskh->bgkrts", q, prompt_k), -jnp.inf)
    to_own = jnp.where(jnp.tri(T, dtype=bool), dot("bgtkrh,bgskh->bgkrts", q, k), -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1)).astype(q.dtype)
    of_prompt = dot("bgkrts,bskh->bgtkrh", weights[..., :Tp], prompt_v)
    of_own = dot("bgkrts,bgskh->bgtkrh", weights[..., Tp:], v)
    return (of_prompt + of_own).astype(q.dtype).reshape(B, g, T, N, H)


def prefill(places: Array, kernel: Kernel = "auto") -> Attend:
    """Causal attention that also stores the prompts' keys and values in the cache: those of prompt i of B go to n / B
    consecutive entries of `places` [n]."""

    def attend(layer: int, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        assert cache is not None
        times = places.shape[0] // k.shape[0]
        copies = lambda x: jnp.repeat(x, times, axis=0)
        return causal_attention(q, k, v, kernel), cache.with_prompts(layer, places, copies(k), copies(v))

    return attend


def decode(slot: Array, lengths: Array) -> Attend:
    """Attention of the next token of every row over its prompt and its own completion. Rows [S,g] have `lengths`
    completion tokens, the new one included. Its keys and values are written to `slot` of the ring."""

    def attend(layer: int, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        assert cache is not None
        cache = cache.with_token(layer, slot, k, v)
        age = (slot - jnp.arange(cache.slots)) % cache.slots  # [slots], 0 for the token that was just written
        return _two_part_attention(layer, age < lengths[..., None], q, cache), cache

    return attend


def _two_part_attention(layer: int, seen: Array, q: Array, cache: Cache) -> Array:
    """One softmax over the prompt's tokens (shared by its completions) and the completion's `seen` slots [S,g,slots].

    The two parts are combined by their maxima and sums, as in online softmax (Milakov and Gimelshein 2018,
    arXiv:1805.02867), so that no joint [.., Tp + slots] array is built.
    """
    prompt_k, prompt_v, own_k, own_v = cache.layers[layer]
    S, g, K, _, H = values_of(own_v).shape
    queries = q.reshape(S, g, K, -1, H) * jnp.asarray(H**-0.5, q.dtype)
    to_prompt = scaled(_dot("skgrh,skth->skgrt", queries.swapaxes(1, 2), prompt_k), prompt_k, (2, 3))
    to_own = scaled(_dot("sgkrh,sgkht->sgkrt", queries, own_k), own_k, (3,))
    in_prompt = jnp.arange(to_prompt.shape[-1]) < cache.prompt_lengths[:, None]  # [S,Tp]
    to_prompt = jnp.where(in_prompt[:, None, None, None], to_prompt, -jnp.inf)
    to_own = jnp.where(seen[:, :, None, None], to_own, -jnp.inf)

    peak = jnp.maximum(to_prompt.max(-1).swapaxes(1, 2), to_own.max(-1))  # [S,g,K,r]
    on_prompt = jnp.exp(to_prompt - peak.swapaxes(1, 2)[..., None])
    on_own = jnp.exp(to_own - peak[..., None])
    total = on_prompt.sum(-1).swapaxes(1, 2) + on_own.sum(-1)
    on_prompt, on_own = scaled(on_prompt, prompt_v, (2, 3)), scaled(on_own, own_v, (3,))
    of_prompt = _dot("skgrt,skth->skgrh", on_prompt.astype(q.dtype), prompt_v).swapaxes(1, 2)
    of_own = _dot("sgkrt,sgkth->sgkrh", on_own.astype(q.dtype), own_v)
    return ((of_prompt + of_own) / total[..., None]).astype(q.dtype).reshape(q.shape)


def _dot(spec: str, x: Array, entries: Entries) -> Array:
    """Products with the entries of the cache, summed in float32, without their scales."""
    return jnp.einsum(spec, x, values_of(entries).astype(x.dtype), preferred_element_type=jnp.float32)
