"""The rows of a state in another table: rows that have ended are left out, the ring of the cache gets another size."""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from grpo_jax.rollout.state import Decoding, on_mesh


def rearrange(slots: int, state: Decoding, places: Array, rows: Array) -> Decoding:
    """A table of places [S'] with rows [S',g'] and `slots` slots.

    places: int32, the old place with the prompt of each new one.
    rows: int32, the old row (place * g + number) at each new one; -1: nobody.
    """
    taken = rows >= 0
    of_rows = lambda x: x.reshape(-1)[rows]
    cache = state.cache
    ring = _Ring(state.slot[0], cache.slots, slots)
    own = lambda x, axis: ring.turned(x.reshape(-1, *x.shape[2:])[rows], axis)
    moved = replace(cache.mapped(lambda x: x[places], own), prompt_lengths=cache.prompt_lengths[places])
    return Decoding(
        slot=ring.next_slot[None],
        keys=of_rows(state.keys),
        last=of_rows(state.last),
        lengths=of_rows(state.lengths),
        limits=jnp.where(taken, of_rows(state.limits), 0),
        finished=of_rows(state.finished),
        cache=on_mesh(moved),
    )


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
