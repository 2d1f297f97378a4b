"""The rows of a state in another table: rows that have ended are left out, the ring of the cache gets another size.

The cache moves layer by layer, each old layer given up before the next is made, so that growing takes one layer's
memory more and not a second cache's.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, Layer
from grpo_jax.rollout.state import Decoding, layer_on_mesh


def rearranged(
    rows_moved: Callable[..., Decoding],
    layer_moved: Callable[..., Layer],
    state: Decoding,
    places: Array,
    rows: Array,
) -> Decoding:
    """`state` moved by the two compiled functions below. It is used up, as if donated."""
    layers = state.cache.layers
    moved = rows_moved(replace(state, cache=replace(state.cache, layers=())), places, rows)
    new = []
    for layer in layers:
        new.append(layer_moved(layer, state.slot, places, rows))
        for array in jax.tree.leaves(layer):
            array.delete()
    return replace(moved, cache=replace(moved.cache, layers=tuple(new)))


def move_rows(old: int, new: int, state: Decoding, places: Array, rows: Array) -> Decoding:
    """All but the layers, for a table of places [S'] with rows [S',g'] whose ring goes from `old` to `new` slots.

    places: int32, the old place with the prompt of each new one.
    rows: int32, the old row (place * g + number) at each new one; -1: nobody.
    """
    of_rows = lambda x: x.reshape(-1)[rows]
    return Decoding(
        slot=_Ring(state.slot[0], old, new).next_slot[None],
        keys=of_rows(state.keys),
        last=of_rows(state.last),
        lengths=of_rows(state.lengths),
        limits=jnp.where(rows >= 0, of_rows(state.limits), 0),
        finished=of_rows(state.finished),
        cache=Cache((), state.cache.prompt_lengths[places]),
    )


def move_layer(new: int, layer: Layer, slot: Array, places: Array, rows: Array) -> Layer:
    """One layer of the cache for that table; `slot` [1] of the old ring is the next to be written."""
    ring = _Ring(slot[0], layer.slots, new)
    own = lambda x, axis: ring.turned(x.reshape(-1, *x.shape[2:])[rows], axis)
    return layer_on_mesh(layer.mapped(lambda x: x[places], own))


class _Ring:
    """A ring of `old` slots, the next to be written being `slot`, as one of `new` slots: the youngest are kept, from
    slot 0 on."""

    def __init__(self, slot: Array, old: int, new: int):
        self.slot, self.old, self.new = slot, old, new
        self.kept = min(old, new)

    @property
    def next_slot(self) -> Array:
        """[] int32, the one to be written next."""
        return self.slot if self.old == self.new else jnp.int32(self.kept % self.new)

    def turned(self, x: Array, axis: int) -> Array:
        """`old` slots along `axis` of x -> `new` slots."""
        if self.old == self.new:
            return x
        source = (jnp.arange(self.kept) + self.slot - self.kept) % self.old
        room = [(0, 0)] * x.ndim
        room[axis] = 0, self.new - self.kept
        return jnp.pad(jnp.take(x, source, axis=axis), room)
