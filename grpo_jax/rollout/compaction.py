"""Compaction: the live rows of a state move to another table, and the ring of the cache gets another size.

The cache moves layer by layer, and each old layer is freed before the next is made, so that growing needs the memory of
one more layer and not of a second cache.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, Layer
from grpo_jax.rollout import repetition
from grpo_jax.rollout.state import DecodeState, layer_on_mesh


def compact(
    move_rows: Callable[..., DecodeState],
    move_layer: Callable[..., Layer],
    state: DecodeState,
    places: Array,
    rows: Array,
) -> DecodeState:
    """Move `state` with the compiled forms of the two functions below. It is used up, as if donated."""
    layers = state.cache.layers
    moved = move_rows(replace(state, cache=replace(state.cache, layers=())), places, rows)
    new = []
    for layer in layers:
        new.append(move_layer(layer, state.slot, places, rows))
        for array in jax.tree.leaves(layer):
            array.delete()
    return replace(moved, cache=replace(moved.cache, layers=tuple(new)))


def move_rows(old: int, new: int, state: DecodeState, places: Array, rows: Array) -> DecodeState:
    """Everything but the layers, for a table of places [S'] with rows [S',g'] whose ring goes from `old` to `new`
    slots.

    places: int32, the old place that holds the prompt of each new one.
    rows: int32, the old row (place * g + number within it) of each new one; -1: the new row is empty.
    """
    gather = lambda x: x.reshape(-1)[rows]
    return DecodeState(
        slot=_Ring(state.slot[0], old, new).next_slot[None],
        keys=gather(state.keys),
        last=gather(state.last),
        lengths=gather(state.lengths),
        limits=jnp.where(rows >= 0, gather(state.limits), 0),
        finished=gather(state.finished),
        cache=Cache((), state.cache.prompt_lengths[places]),
        seen=_seen_by(state.seen, rows),
    )


def _seen_by(seen: Array | None, rows: Array) -> Array | None:
    return None if seen is None else repetition.on_mesh(seen.reshape(-1, seen.shape[-1])[rows])


def move_layer(new: int, layer: Layer, slot: Array, places: Array, rows: Array) -> Layer:
    """One layer of the cache for that table; `slot` [1] of the old ring is the next to be written."""
    ring = _Ring(slot[0], layer.slots, new)
    of_rows = lambda x, axis: ring.resize(x.reshape(-1, *x.shape[2:])[rows], axis)
    return layer_on_mesh(layer.mapped(lambda x: x[places], of_rows))


class _Ring:
    """A ring of `old` slots, with `slot` the next to be written, that becomes one of `new` slots: the youngest are
    kept, from slot 0 on."""

    def __init__(self, slot: Array, old: int, new: int):
        self.slot, self.old, self.new = slot, old, new
        self.kept = min(old, new)

    @property
    def next_slot(self) -> Array:
        """[] int32, the slot of the new ring to be written next."""
        return self.slot if self.old == self.new else jnp.int32(self.kept % self.new)

    def resize(self, x: Array, axis: int) -> Array:
        """`old` slots along `axis` of x -> `new` slots."""
        if self.old == self.new:
            return x
        source = (jnp.arange(self.kept) + self.slot - self.kept) % self.old
        padding = [(0, 0)] * x.ndim
        padding[axis] = 0, self.new - self.kept
        return jnp.pad(jnp.take(x, source, axis=axis), padding)
