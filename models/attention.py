"""How a block attends: over whole rows (training, scoring), while filling the prompt's cache, while decoding.

The block hands `attend` its queries, keys and values and gets the mixed values back; nothing else of the model
differs between training and sampling. `attend(layer, q, k, v, cache) -> (out, cache)`, where q and out are
[B,T,N,H], k and v [B,T,K,H], and `cache` is carried through the layers (None in training).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache

Attend = Callable[[Array, Array, Array, Array, Cache | None], tuple[Array, Cache | None]]


def causal(layer: Array, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
    """Rows padded on the right: the causal mask alone keeps padding out of every real token's sight."""
    return _causal_attention(q, k, v), cache


def prefill(layer: Array, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
    """Attend as `causal` does, and keep the prompt's keys and values once a prompt."""
    assert cache is not None
    return _causal_attention(q, k, v), cache.with_prompt(layer, k, v)


def decode(step: Array) -> Attend:
    """Attention of the token at completion position `step` over its prompt and its own completion so far."""

    def attend(layer: Array, q: Array, k: Array, v: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        assert cache is not None
        cache = cache.with_token(layer, step, k, v)
        return _two_part_attention(layer, step, q, cache), cache

    return attend


def _causal_attention(q: Array, k: Array, v: Array) -> Array:
    """[B,T,N,H] from q [B,T,N,H] and k, v [B,T,K,H]."""
    kernel: Literal["cudnn", "xla"] = "cudnn" if _on_cuda() and _cudnn_takes(q) else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)


def _on_cuda() -> bool:
    """Whether the mesh that is set consists of GPUs, be they here or only described to the compiler.

    Decided while tracing, and not by `jax.lax.platform_dependent`: that traces every branch, and cuDNN's refuses
    to be traced where its library is absent.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "gpu"


def _cudnn_takes(q: Array) -> bool:
    """cuDNN's flash attention knows half precision and head widths in eights up to 128."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def _two_part_attention(layer: Array, step: Array, q: Array, cache: Cache) -> Array:
    """One softmax over the prompt's scores (shared by the G completions) and the completion's own.

    The parts meet by their maxima and sums, as in online softmax (Milakov and Gimelshein 2018,
    arXiv:1805.02867), so that no joint [.., Tp + Tc] array is built.
    """
    prompt_k, prompt_v, own_k, own_v = cache.layer(layer)
    P, G, K, Tc, H = own_k.shape
    queries = q.reshape(P, G, K, -1, H) * jnp.asarray(H**-0.5, q.dtype)
    to_prompt = jnp.einsum("pgkrh,pkth->pgkrt", queries, prompt_k, preferred_element_type=jnp.float32)
    to_own = jnp.einsum("pgkrh,pgkth->pgkrt", queries, own_k, preferred_element_type=jnp.float32)
    in_prompt = jnp.arange(prompt_k.shape[2]) < cache.prompt_lengths[:, None]  # [P,Tp]
    to_prompt = jnp.where(in_prompt[:, None, None, None], to_prompt, -jnp.inf)
    to_own = jnp.where(jnp.arange(Tc) <= step, to_own, -jnp.inf)

    peak = jnp.maximum(to_prompt.max(-1), to_own.max(-1))[..., None]
    on_prompt, on_own = jnp.exp(to_prompt - peak), jnp.exp(to_own - peak)
    total = on_prompt.sum(-1) + on_own.sum(-1)
    mixed = jnp.einsum(
        "pgkrt,pkth->pgkrh", on_prompt.astype(q.dtype), prompt_v, preferred_element_type=jnp.float32
    ) + jnp.einsum("pgkrt,pgkth->pgkrh", on_own.astype(q.dtype), own_v, preferred_element_type=jnp.float32)
    return (mixed / total[..., None]).astype(q.dtype).reshape(q.shape)
