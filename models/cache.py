"""The two-part key/value cache: a prompt's part once for all its completions, each completion's own part beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.entries import Entries, like, put, turned, values_of, zeros

Layer = tuple[Entries, Entries, Entries, Entries]
"""prompt_k, prompt_v [S,K,Tp,H], own_k as `own_keys` says, own_v [S,g,K,slots,H]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values after rotation, of S places with a prompt and g completions each.

    Prompts are padded on the right and masked by length. The completions' slots are a ring: all rows write to the
    same slot at the same time, so that one slice update serves every row, wherever in its completion it is. A slot
    says nothing about a position (keys are rotated before they are kept): which of them a row sees is a matter of
    their age.
    """

    prompt_k: Entries  # [L,S,K,Tp,H]
    prompt_v: Entries  # [L,S,K,Tp,H]
    prompt_lengths: Array  # [S] int32
    own_k: Entries  # [L,S,g,K,slots,H]
    own_v: Entries  # [L,S,g,K,slots,H]
    own_keys = "sgkth"  # how a layer's keys of completions lie, t being the slots

    @property
    def slots(self) -> int:
        """Tokens of a completion that the cache holds."""
        return values_of(self.own_v).shape[4]

    def with_prompts(self, layer: Array, places: Array, k: Array, v: Array) -> "Cache":
        """Write one layer's keys and values of the prompts of `places` [n]; k and v [n,Tp,K,H]. Places that do not
        exist are left out."""
        set_ = lambda whole, new: whole.at[layer, places].set(new, mode="drop")
        write = lambda whole, new: jax.tree.map(set_, whole, like(whole, new.swapaxes(1, 2)))
        return replace(self, prompt_k=write(self.prompt_k, k), prompt_v=write(self.prompt_v, v))

    def with_token(self, layer: Array, slot: Array, k: Array, v: Array) -> "Cache":
        """Write one layer's keys and values of one token of every row to `slot`; k and v [S*g,1,K,H]."""
        S, g, K, _, H = values_of(self.own_v).shape[1:]

        at = layer, 0, 0, 0, slot, 0
        set_ = lambda whole, new: jax.lax.dynamic_update_slice(whole, new[None], at[: whole.ndim])
        write = lambda whole, new: jax.tree.map(set_, whole, like(whole, new.reshape(S, g, K, 1, H)))
        return replace(self, own_k=write(self.own_k, k), own_v=write(self.own_v, v))

    def layer(self, layer: Array) -> Layer:
        """One layer."""
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return jax.tree.map(pick, self._parts)

    def by_layer(self) -> "LayeredCache":
        """The layers as arrays of their own."""
        prompt_k, prompt_v, own_k, own_v = self._parts
        parts = prompt_k, prompt_v, turned(own_k), own_v
        one = lambda layer: jax.tree.map(lambda x: x[layer], parts)
        return LayeredCache(tuple(map(one, range(len(values_of(own_v))))), self.prompt_lengths)

    def mapped(self, prompt: Callable[[Array], Array], own: Callable[[Array], Array]) -> "Cache":
        """With the arrays of the prompts [L,S,...] and those of the completions [L,S,g,...] changed."""
        prompt_k, prompt_v = jax.tree.map(prompt, (self.prompt_k, self.prompt_v))
        own_k, own_v = jax.tree.map(own, (self.own_k, self.own_v))
        return Cache(prompt_k, prompt_v, self.prompt_lengths, own_k, own_v)

    @property
    def _parts(self) -> tuple[Entries, Entries, Entries, Entries]:
        return self.prompt_k, self.prompt_v, self.own_k, self.own_v


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayeredCache:
    """A `Cache` whose layers are arrays of their own, for programs without a loop over layers: nothing has to be cut
    out of a larger array at each step. The completions' keys lie with their slots last, as processors multiply them
    with a query fastest: at 127 slots in a third to a half of the time."""

    layers: tuple[Layer, ...]  # [L]
    prompt_lengths: Array  # [S] int32
    own_keys = "sgkht"

    @property
    def slots(self) -> int:
        """Tokens of a completion that the cache holds."""
        return values_of(self.layers[0][3]).shape[3]

    def with_token(self, layer: int, slot: Array, k: Array, v: Array) -> "LayeredCache":
        """As of `Cache`."""
        prompt_k, prompt_v, own_k, own_v = self.layers[layer]
        S, g, K, _, H = values_of(own_v).shape
        new_k, new_v = (like(own_v, x.reshape(S, g, K, 1, H)) for x in (k, v))
        changed = prompt_k, prompt_v, put(own_k, turned(new_k), slot, -1), put(own_v, new_v, slot, 3)
        return replace(self, layers=(*self.layers[:layer], changed, *self.layers[layer + 1 :]))

    def layer(self, layer: int) -> Layer:
        """As of `Cache`."""
        return self.layers[layer]

    def stacked(self, whole: Cache) -> Cache:
        """`whole` with the completions' part of these layers: decoding does not change the prompts'."""
        own_k, own_v = (
            jax.tree.map(lambda *x: jnp.stack(x), *(layer[i] for layer in self.layers)) for i in (2, 3)
        )
        return replace(whole, own_k=turned(own_k), own_v=own_v)


def empty_cache(
    cfg: ModelConfig,
    places: int,
    completions: int,
    prompt_width: int,
    slots: int,
    dtype: jnp.dtype,
    form: str = "auto",
) -> Cache:
    """Zeros for `places` prompts of up to `prompt_width` tokens, with `completions` rows of up to `slots` each, in
    `dtype` or int8 as `form` says."""
    L, K, H = cfg.num_layers, cfg.num_kv_heads, cfg.head_dim
    prompt = lambda: zeros((L, places, K, prompt_width, H), dtype, form)
    own = lambda: zeros((L, places, completions, K, slots, H), dtype, form)
    return Cache(prompt(), prompt(), jnp.ones(places, jnp.int32), own(), own())
