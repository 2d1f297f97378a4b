"""The two-part key/value cache: the prompt's part once a prompt, each completion's own part beside it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values after rotation. Prompts are padded on the right and masked by length; all completions
    write at the same position, so that one slice update serves every row."""

    prompt_k: Array  # [L,P,K,Tp,H]
    prompt_v: Array  # [L,P,K,Tp,H]
    prompt_lengths: Array  # [P] int32
    own_k: Array  # [L,P,G,K,Tc,H]
    own_v: Array  # [L,P,G,K,Tc,H]

    def with_prompt(self, layer: Array, k: Array, v: Array) -> "Cache":
        """Write one layer's prompt keys and values, k and v [P,Tp,K,H]."""
        return replace(
            self,
            prompt_k=self.prompt_k.at[layer].set(k.swapaxes(1, 2)),
            prompt_v=self.prompt_v.at[layer].set(v.swapaxes(1, 2)),
        )

    def with_token(self, layer: Array, step: Array, k: Array, v: Array) -> "Cache":
        """Write one layer's keys and values of completion position `step`, k and v [B,1,K,H]."""
        _, P, G, K, _, H = self.own_k.shape
        at = (layer, 0, 0, 0, step, 0)
        return replace(
            self,
            own_k=jax.lax.dynamic_update_slice(self.own_k, k.reshape(1, P, G, K, 1, H), at),
            own_v=jax.lax.dynamic_update_slice(self.own_v, v.reshape(1, P, G, K, 1, H), at),
        )

    def layer(self, layer: Array) -> tuple[Array, Array, Array, Array]:
        """One layer's (prompt_k, prompt_v, own_k, own_v)."""
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return pick(self.prompt_k), pick(self.prompt_v), pick(self.own_k), pick(self.own_v)


def empty_cache(
    cfg: ModelConfig, prompt_lengths: Array, completions: int, prompt_width: int, width: int, dtype: jnp.dtype
) -> Cache:
    """Zeros for P prompts of up to `prompt_width` tokens with `completions` rows each of up to `width` tokens."""
    P, L, K, H = prompt_lengths.shape[0], cfg.num_layers, cfg.num_kv_heads, cfg.head_dim
    prompt = jnp.zeros((L, P, K, prompt_width, H), dtype)
    own = jnp.zeros((L, P, completions, K, width, H), dtype)
    return Cache(prompt, prompt, prompt_lengths, own, own)
