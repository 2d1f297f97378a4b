"""The repetition penalty: which tokens a row has seen, in prompt or completion, and what that does to logits."""

import jax.numpy as jnp
from jax import Array

from grpo_jax.sharding.constraints import constrain
from grpo_jax.sharding.mesh import ROWS


def seen_in_prompts(
    tokens: Array, lengths: Array, places_per_prompt: int, rows: int, vocab_size: int
) -> Array:
    """bool [m*places_per_prompt,g,V]: the tokens of each row's prompt, from prompts [m,Tp] of `lengths` [m]."""
    m, prompt_width = tokens.shape
    inside = jnp.arange(prompt_width) < lengths[:, None]
    beyond = jnp.where(inside, tokens, vocab_size)  # padding is out of range, and dropped
    seen = jnp.zeros((m, vocab_size), bool).at[jnp.arange(m)[:, None], beyond].set(True, mode="drop")
    shape = m, places_per_prompt * rows, vocab_size
    return on_mesh(jnp.broadcast_to(seen[:, None], shape).reshape(-1, rows, vocab_size))


def with_tokens(seen: Array, tokens: Array, live: Array) -> Array:
    """`seen` [S,g,V] with the tokens [S,g] that the `live` rows [S,g] have just sampled."""
    place, row = jnp.indices(tokens.shape)
    written = jnp.where(live, tokens, seen.shape[-1])
    return on_mesh(seen.at[place, row, written].set(True, mode="drop"))


def penalised(logits: Array, seen: Array, penalty: float) -> Array:
    """Logits with those of tokens that were `seen` divided by the penalty, or multiplied if they are negative (Keskar
    et al. 2019, arXiv:1909.05858). Both arrays have one shape; dividing by a temperature first changes nothing."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def on_mesh(seen: Array) -> Array:
    """Split places over the row axes and tokens over `tensor`, as the logits are."""
    return constrain(seen, ROWS, None, "tensor")
