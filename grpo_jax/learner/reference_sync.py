"""A reference that follows the policy (TR-DPO: Gorbatovski et al. 2024, arXiv:2404.09656): every so many updates it
becomes `alpha * policy + (1 - alpha) * reference`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.transformer import Params, cast


@dataclass(frozen=True)
class ReferenceSync:
    """When and how far the reference moves towards the policy."""

    alpha: float  # weight of the policy
    every: int  # updates
    dtype: str  # of the reference

    def start(self, params: Params) -> Params:
        """The reference before the first update."""
        return cast(jax.tree.map(jnp.copy, params), jnp.dtype(self.dtype))

    def after(self, reference: Params, params: Params, updates: Array) -> Params:
        """The reference once `updates` [] updates have led to `params`."""
        due = updates % self.every == 0

        def moved(old: Array, policy: Array) -> Array:
            # Chosen element by element, which is done in place; a conditional would hold both.
            mixed = (1 - self.alpha) * old.astype(jnp.float32) + self.alpha * policy
            return jnp.where(due, mixed.astype(old.dtype), old)

        return jax.tree.map(moved, reference, params)
