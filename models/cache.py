"""The key/value cache in two parts: one per prompt, shared by its completions, and one per completion."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.entries import Entries, like, put, turned, values_of, zeros


class Layer(NamedTuple):
    """One layer's keys and values. The completions' keys have their slots last, which is fastest on CPUs (at 127 slots
    in a third to a half of the time) and makes no difference on GPUs and TPUs."""

    prompt_k: Entries  # [S,K,Tp,H]
    prompt_v: Entries  # [S,K,Tp,H]
    own_k: Entries  # [S,g,K,H,slots]
    own_v: Entries  # [S,g,K,slots,H]

    @property
    def slots(self) -> int:
        """Number of tokens of a completion that it holds."""
        return values_of(self.own_v).shape[3]

    def mapped(self, prompt: Callable[[Array], Array], own: Callable[[Array, int], Array]) -> "Layer":
        """The layer with `prompt` applied to the prompts' arrays [S,...], and `own` to the completions' [S,g,...] and
        the number of their axis of slots."""
        prompt_k, prompt_v = jax.tree.map(prompt, self[:2])
        own_k = jax.tree.map(lambda x: own(x, x.ndim - 1), self.own_k)
        return Layer(prompt_k, prompt_v, own_k, jax.tree.map(lambda x: own(x, 3), self.own_v))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values after rotation, of S places with a prompt and g completions each.

    Prompts are padded on the right and masked by length. The completions' slots are a ring buffer: all rows write to
    the same slot at the same time, so that one slice update serves every row, wherever it is in its completion. Keys
    are rotated before they are stored, so a slot does not determine a position; a row attends to slots by their age.

    Each layer has arrays of its own, so that none must be sliced out of a larger one at each token.
    """

    layers: tuple[Layer, ...]  # [L]
    prompt_lengths: Array  # [S] int32

    @property
    def slots(self) -> int:
        """Number of tokens of a completion that the cache holds."""
        return self.layers[0].slots

    def with_prompts(self, layer: int, places: Array, k: Array, v: Array) -> "Cache":
        """The cache with one layer's keys and values of prompts written to `places` [n]; k and v [n,Tp,K,H]. Places
        that do not exist are skipped."""
        old = self.layers[layer]
        set_ = lambda whole, new: whole.at[places].set(new, mode="drop")
        write = lambda whole, new: jax.tree.map(set_, whole, like(whole, new.swapaxes(1, 2)))
        return self._with(
            layer, old._replace(prompt_k=write(old.prompt_k, k), prompt_v=write(old.prompt_v, v))
        )

    def with_token(self, layer: int, slot: Array, k: Array, v: Array) -> "Cache":
        """The cache with one layer's keys and values of a token of every row written to `slot`; k and v [S*g,1,K,H]."""
        old = self.layers[layer]
        S, g, K, _, H = values_of(old.own_v).shape
        k_, v_ = (like(old.own_v, x.reshape(S, g, K, 1, H)) for x in (k, v))
        own_k, own_v = put(old.own_k, turned(k_), slot, -1), put(old.own_v, v_, slot, 3)
        return self._with(layer, old._replace(own_k=own_k, own_v=own_v))

    def _with(self, layer: int, changed: Layer) -> "Cache":
        return replace(self, layers=(*self.layers[:layer], changed, *self.layers[layer + 1 :]))


def empty_cache(
    cfg: ModelConfig,
    places: int,
    completions: int,
    prompt_width: int,
    slots: int,
    dtype: jnp.dtype,
    form: str = "auto",
) -> Cache:
    """A cache of zeros for `places` prompts of up to `prompt_width` tokens, each with `completions` rows of up to
    `slots` tokens, in `dtype` or int8 as `form` says."""
    K, H = cfg.num_kv_heads, cfg.head_dim
    prompt = lambda: zeros((places, K, prompt_width, H), dtype, form)
    own = lambda: zeros((places, completions, K, slots, H), dtype, form)
    layers = (Layer(prompt(), prompt(), turned(own()), own()) for _ in range(cfg.num_layers))
    return Cache(tuple(layers), jnp.ones(places, jnp.int32))
