"""Learning-rate schedules, with the names, options and formulas of transformers' `get_scheduler`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

Factor = Callable[[Array], Array]
"""Updates since the warm-up, float32 -> factor of the peak learning rate."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the updates of a run."""

    peak: float
    kind: str  # a key of KINDS: how it goes on after the warm-up
    warmup: int
    total: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> optax.Schedule:
        """Updates taken -> learning rate. It rises to the peak over the warm-up, from 0 or `min_lr_ratio` of it."""
        after = KINDS[self.kind](self, **self.options)
        if not self.warmup:
            return after
        rising = optax.linear_schedule(
            self.options.get("min_lr_ratio", 0.0) * self.peak, self.peak, self.warmup
        )
        return optax.join_schedules([rising, after], [self.warmup])

    @property
    def falling(self) -> int:
        """Updates after the warm-up; at least 1."""
        return max(self.total - self.warmup, 1)

    def scaled(self, factor: Factor) -> optax.Schedule:
        """The peak times a factor, which is at least 0."""
        return lambda count: self.peak * jnp.maximum(factor(jnp.asarray(count, jnp.float32)), 0.0)


def _constant(s: Schedule) -> optax.Schedule:
    return optax.constant_schedule(s.peak)


def _linear(s: Schedule) -> optax.Schedule:
    return optax.linear_schedule(s.peak, 0.0, s.falling)


def _cosine(s: Schedule, num_cycles: float = 0.5) -> optax.Schedule:
    if num_cycles == 0.5:
        return optax.cosine_decay_schedule(s.peak, s.falling)
    return s.scaled(lambda n: _wave(n / s.falling, num_cycles))


def _cosine_with_restarts(s: Schedule, num_cycles: int = 1) -> optax.Schedule:
    progress = lambda n: n / s.falling
    return s.scaled(lambda n: jnp.where(progress(n) >= 1, 0.0, _wave(progress(n) * num_cycles % 1.0, 0.5)))


def _cosine_with_min_lr(
    s: Schedule, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None
) -> optax.Schedule:
    least = min_lr / s.peak if min_lr is not None else min_lr_rate or 0.0
    return s.scaled(lambda n: _wave(n / s.falling, num_cycles) * (1 - least) + least)


def _polynomial(s: Schedule, lr_end: float = 1e-7, power: float = 1.0) -> optax.Schedule:
    last = lr_end / s.peak
    remaining = lambda n: jnp.maximum(1 - n / s.falling, 0.0)
    return s.scaled(lambda n: (1 - last) * remaining(n) ** power + last)


def _inverse_sqrt(s: Schedule, timescale: int | None = None) -> optax.Schedule:
    scale = timescale or s.warmup or 10_000
    return s.scaled(lambda n: (1 + n / scale) ** -0.5)


def _warmup_stable_decay(
    s: Schedule,
    num_decay_steps: int,
    min_lr_ratio: float = 0.0,
    decay_type: str = "cosine",
    num_cycles: float = 0.5,
) -> optax.Schedule:
    """At the peak until `num_decay_steps` updates before the end."""
    stable = s.total - s.warmup - num_decay_steps
    shape: Factor = {
        "cosine": lambda x: _wave(x, num_cycles),
        "linear": lambda x: 1 - x,
        "1-sqrt": lambda x: 1 - jnp.sqrt(x),
    }[decay_type]
    progress = lambda n: jnp.clip((n - stable) / num_decay_steps, 0.0, 1.0)
    return s.scaled(lambda n: jnp.maximum(shape(progress(n)), 0.0) * (1 - min_lr_ratio) + min_lr_ratio)


def _wave(progress: Array, cycles: float) -> Array:
    return 0.5 * (1 + jnp.cos(2 * jnp.pi * cycles * progress))


KINDS: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}
