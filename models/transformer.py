"""The decoder-only transformer in Flax NNX: modules declare parameters, functions map arrays to arrays.

`init` and the loader return the parameters as a plain dict, which is merged into the module inside the compiled
function:

    hidden, _ = hidden_states(cfg, params, tokens, positions)
    logits    = head_logits(cfg, params, hidden)

Architecture: Qwen2.5 technical report (arXiv:2412.15115), section 2.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from grpo_jax.models.attention import Attend, causal
from grpo_jax.models.cache import Cache
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families import family_of
from grpo_jax.models.lora import LoRA, abstract_adapters, merged
from grpo_jax.models.matrices import product
from grpo_jax.models.outputs_first import with_outputs_first
from grpo_jax.models.quantized import dequantize, quantize
from grpo_jax.models.remat import Remat, block_input, recomputing, worth_keeping
from grpo_jax.models.rope import rotate, rotation_tables
from grpo_jax.sharding.constraints import over_rows
from grpo_jax.sharding.memory import fetched

# Nested plain dict of arrays; layers carry a leading L axis. A matrix may be a `Matrix` of another form.
Params = dict[str, Any]


class RMSNorm(nnx.Module):
    """Scale by the root mean square, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Linear(nnx.LinearGeneral):
    """A linear layer whose kernel may have any form that `product` accepts."""

    def __call__(self, x: Array, out_sharding: Any = None) -> Array:
        """x [..., inputs] -> [..., outputs]."""
        y = product(x, self.kernel.get_value(), tuple(range(len(self.in_features))))
        return worth_keeping(y if self.bias is None else y + self.bias[...])


@jax.custom_vjp
def gated(gate: Array, up: Array) -> Array:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202).

    Its gradient saves only the two arguments; the automatic one would save four arrays of that size.
    """
    return nnx.silu(gate) * up


def _gated_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated(gate, up), (gate, up)


def _gated_backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    gate, up, wide = (x.astype(jnp.float32) for x in (*kept, d))
    share = jax.nn.sigmoid(gate)
    silu = gate * share
    d_gate, d_up = wide * up * (share + silu * (1 - share)), wide * silu
    return d_gate.astype(d.dtype), d_up.astype(d.dtype)


gated.defvjp(_gated_forward, _gated_backward)


class Block(nnx.Module):
    """Attention and feed-forward, each after a norm and with a residual connection. Only q, k and v have biases, if the
    family has them."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, F, heads, kv_heads = cfg.hidden_size, cfg.intermediate_size, cfg.num_heads, cfg.num_kv_heads
        init = nnx.initializers.normal(0.02)
        bias = family_of(cfg).qkv_bias
        project = lambda n: Linear(D, (n, cfg.head_dim), use_bias=bias, kernel_init=init, rngs=rngs)
        linear = lambda a, b: Linear(a, b, use_bias=False, kernel_init=init, rngs=rngs)
        self.q, self.k, self.v = project(heads), project(kv_heads), project(kv_heads)
        self.o = Linear((heads, cfg.head_dim), D, axis=(-2, -1), use_bias=False, kernel_init=init, rngs=rngs)
        self.gate, self.up, self.down = linear(D, F), linear(D, F), linear(F, D)
        self.input_norm, self.post_norm = RMSNorm(D, cfg.rms_norm_eps), RMSNorm(D, cfg.rms_norm_eps)

    def __call__(
        self, x: Array, cos: Array, sin: Array, layer: Array, attend: Attend, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        """x [B,T,D], cos and sin [B,T,H/2] -> x [B,T,D] and the cache."""
        with jax.named_scope("attention"):
            y = self.input_norm(x)
            q, k = rotate(self.q(y), cos, sin), rotate(self.k(y), cos, sin)
            mixed, cache = attend(layer, q, k, self.v(y), cache)
            x = x + self.o(worth_keeping(mixed))
        with jax.named_scope("feed_forward"):
            y = self.post_norm(x)
            x = x + self.down(gated(self.gate(y), self.up(y)))
        return x, cache


class Transformer(nnx.Module):
    """The whole model, which declares the parameter tree, its shapes and its random initial values."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(cfg.vocab_size, cfg.hidden_size, embedding_init=init, rngs=rngs)
        stack = nnx.vmap(lambda rngs: Block(cfg, rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=cfg.num_layers)(stack)(rngs)
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        if not cfg.tie_word_embeddings:
            self.head = nnx.Linear(
                cfg.hidden_size, cfg.vocab_size, use_bias=False, kernel_init=init, rngs=rngs
            )


def init(cfg: ModelConfig, key: Array) -> Params:
    """Random float32 parameters (normal, 0.02)."""
    return nnx.to_pure_dict(nnx.state(Transformer(cfg, nnx.Rngs(params=key)), nnx.Param))


@cache
def abstract_params(cfg: ModelConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s in float32. Allocates nothing."""
    return jax.eval_shape(lambda: init(cfg, jax.random.key(0)))


def abstract_trained(cfg: ModelConfig, lora: LoRA | None) -> Params:
    """The trained parameters as shapes: all of them, or the adapters."""
    return abstract_params(cfg) if lora is None else abstract_adapters(cfg, lora)


@cache
def _block_definition(cfg: ModelConfig) -> nnx.GraphDef:
    """The graph of one block, shared by all layers."""
    return nnx.graphdef(nnx.eval_shape(lambda: Block(cfg, nnx.Rngs(0))))


def hidden_states(
    cfg: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    attend: Attend = causal,
    cache: Cache | None = None,
    remat: Remat = "none",
) -> tuple[Array, Cache | None]:
    """Normed last hidden states [B,T,D] of `tokens` [B,T] at `positions` [B,T], and the cache.

    Computes in the parameters' dtype. Layers in host memory are transferred one by one.
    `remat`: what the backward pass recomputes in each block instead of saving it; see `remat.py`.
    """
    cos, sin = rotation_tables(cfg, positions)
    definition = _block_definition(cfg)

    def block(carry, layer_and_weights):
        x, cache = carry
        layer, weights = layer_and_weights
        weights = fetched(weights)
        x, cache = nnx.merge(definition, weights)(block_input(x), cos, sin, layer, attend, cache)
        # Without this the compiler shards x like the weights, over fsdp, and every device computes every row.
        return (over_rows(x), cache), None

    with jax.named_scope("embed"):
        rows = jax.tree.map(lambda table: jnp.take(table, tokens, axis=0), params["embed"]["embedding"])
        x = over_rows(dequantize(rows))
    if isinstance(params["layers"], tuple):  # `by_layer`
        for numbered in enumerate(params["layers"]):
            (x, cache), _ = block((x, cache), numbered)
    else:
        layers = (jnp.arange(cfg.num_layers), params["layers"])
        (x, cache), _ = jax.lax.scan(recomputing(block, remat), (x, cache), layers)
    norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
    norm.scale = nnx.Param(params["norm"]["scale"])
    return norm(x), cache


def for_decoding(params: Params, on_cpu: bool) -> Params:
    """The weights in the layout for sampling: a tuple of layers, so that none must be sliced out of a larger array at
    each token, and on CPU with their outputs first."""
    return by_layer(with_outputs_first(params) if on_cpu else params)


def by_layer(params: Params) -> Params:
    """The parameters with a tuple of layers without the leading L axis, for which `hidden_states` unrolls its loop."""
    count = len(jax.tree.leaves(params["layers"])[0])
    one = lambda layer: jax.tree.map(lambda x: x[layer], params["layers"])
    return params | {"layers": tuple(map(one, range(count)))}


def head_logits(cfg: ModelConfig, params: Params, hidden: Array, num_tokens: int | None = None) -> Array:
    """Float32 logits [..., V] of hidden states [..., D].

    Rows of the vocabulary from `num_tokens` on are padding beyond the tokenizer's ids (Qwen2.5 has 151,665 tokens in
    151,936 rows): their logits are minus infinity, for the sampler and the scorer alike.
    """
    with jax.named_scope("head"):
        if cfg.tie_word_embeddings:
            logits = product(hidden, params["embed"]["embedding"], (1,), jnp.float32)  # [V,D]
        else:
            logits = product(hidden, params["head"]["kernel"], (0,), jnp.float32)  # [D,V]
    if num_tokens is None or num_tokens >= cfg.vocab_size:
        return logits
    return jnp.where(jnp.arange(cfg.vocab_size) < num_tokens, logits, -jnp.inf)


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """The parameters in the compute dtype. Copies nothing that has it already; int8 stays int8."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def in_form(params: Params, dtype: jnp.dtype, form: str) -> Params:
    """The parameters in `dtype` (form `auto`), or with quantized matrices (`int8`, `nf4`)."""
    return cast(params, dtype) if form == "auto" else quantize(params, dtype, form)


def sampler_weights(params: Params, dtype: jnp.dtype, form: str = "auto") -> Params:
    """The parameters for a sampler, in `dtype` and `form`. Adapters are merged into plain matrices; quantized matrices
    and their adapters stay separate."""
    return in_form(merged(params), dtype, form)
