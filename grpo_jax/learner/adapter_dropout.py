"""The dropout of adapters over the updates of a run."""

from dataclasses import dataclass

import jax
from jax import Array

from grpo_jax.models.lora import Dropout

_STREAM = 0x64726F70  # separates these random numbers from others of the same seed


@dataclass(frozen=True)
class AdapterDropout:
    """A function of the seed and the number of updates taken, so that a resumed run goes on with the same masks."""

    rate: float
    seed: int

    def at(self, updates: Array) -> Dropout:
        """That of the update after `updates` [] others."""
        key = jax.random.fold_in(jax.random.key(self.seed), _STREAM)
        return Dropout(self.rate, jax.random.fold_in(key, updates))
