"""Who stands where, on the host: which completions are drawn at a time, and in what table.

The device sees a table of places with rows (`state.py`), on each of D parts of the mesh one of the same size. Here
is decided, between two segments, which rows stay, how large the table is, and which waiting prompts come in. Only
NumPy; every host decides the same from the same facts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_jax.rollout.state import Size

EMPTY = -1
_FEWEST_SLOTS = 128  # of a ring at first: fewer are not worth a compilation
_STEP = 256  # slots by which it grows, at least, for the same reason
_ROW = 512  # a row costs as much as it attends to, and for all else as much as so many tokens of cache
_WASTE = 4  # rows move together to make room when one of so many places is taken by rows that have ended


Seats = list[list[tuple[int, np.ndarray]]]
"""On each part, newcomers: a prompt and its places."""


@dataclass(frozen=True)
class Table:
    """Prompts at places, samples of them at rows; EMPTY where none is."""

    prompts: np.ndarray  # [D,S] int
    samples: np.ndarray  # [D,S,g] int

    @staticmethod
    def empty(parts: int, size: Size) -> "Table":
        """Nobody anywhere."""
        rows = parts, size.places, size.rows
        return Table(np.full(rows[:2], EMPTY), np.full(rows, EMPTY))

    def alive(self, ended: np.ndarray) -> np.ndarray:
        """[D,S,g] bool: rows that go on, where `ended` [P,G] says which do not."""
        return (self.samples != EMPTY) & ~ended[self.prompts[..., None], self.samples]

    def of_rows(self, values: np.ndarray) -> np.ndarray:
        """[D,S,g] from `values` [P,G], anything for nobody."""
        return values[self.prompts[..., None], self.samples]

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(prompts, samples) of everybody, an index into [P,G]."""
        here = self.samples != EMPTY
        return np.broadcast_to(self.prompts[..., None], here.shape)[here], self.samples[here]

    def size(self, slots: int) -> Size:
        """With `slots` slots."""
        _, places, rows = self.samples.shape
        return Size(places, rows, slots)

    def seated(self, seats: "Seats", samples: int) -> "Table":
        """With the `samples` completions of each newcomer at his places."""
        prompts, rows = self.prompts.copy(), self.samples.copy()
        g = rows.shape[2]
        for part, queue in enumerate(seats):
            for prompt, places in queue:
                all_rows = np.arange(len(places) * g).reshape(-1, g)
                prompts[part, places] = prompt
                rows[part, places] = np.where(all_rows < samples, all_rows, EMPTY)
        return Table(prompts, rows)

    def seats(self, ended: np.ndarray, times: int) -> "Iterator[tuple[int, np.ndarray]]":
        """(part, `times` places of it where no row goes on), one after another, from the emptiest part."""
        free = [np.flatnonzero(~part.any(-1)) for part in self.alive(ended)]
        while True:
            part = max(range(len(free)), key=lambda d: len(free[d]))
            if len(free[part]) < times:
                return
            yield part, free[part][:times]
            free[part] = free[part][times:]


@dataclass(frozen=True)
class Move:
    """A new table and where its places and rows come from, as `rearrange` takes them."""

    table: Table
    places: np.ndarray  # [D,S'] int32
    rows: np.ndarray  # [D,S',g'] int32


def divisors(samples: int) -> list[int]:
    """The numbers of rows that a place may have: `samples`, half of it, and so on down to 1."""
    sizes = [samples]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def first_size(prompts: int, samples: int, slots: int, parts: int, rows: int) -> Size:
    """The table of a rollout of P x G completions when `rows` stand in it at most, over all parts (0: all).

    Where all fit a place has all completions of its prompt. Where prompts must wait, a place has a quarter of them:
    places are taken again as soon as their rows have ended, and the prompt's cache is kept four times at most.
    """
    each = -(-prompts // parts)
    if not rows or each * samples * parts <= rows:
        return Size(each, samples, slots)
    g = -(-samples // 4)
    times = -(-samples // g)
    return Size(min(max(rows // parts // g // times, 1), each) * times, g, slots)


def move(table: Table, slots: int, ended: np.ndarray, width: int, waiting: bool) -> Move | None:
    """How the rows that go on should stand from now on, with `slots` slots; None: as they do.

    While prompts are waiting the table keeps its size, and rows move together when that makes a good deal of room.
    Otherwise it shrinks as soon as another costs half as much: fewer places, or fewer rows at each.
    width: tokens of a prompt in the cache.
    """
    alive, (_, S, g) = table.alive(ended), table.samples.shape
    if waiting:
        packed = sum(_chunks(alive[d], table.prompts[d], g) for d in range(len(alive)))
        gained = alive.any(-1).sum() - packed
        return _moved(table, alive, S, g) if gained * _WASTE >= len(alive) * S else None
    cost = lambda size: size[0] * (size[1] * (slots + _ROW) + width)
    choices = [(_places(alive, table.prompts, rows, S), rows) for rows in divisors(g)]
    best = min(choices, key=cost)
    return _moved(table, alive, *best) if 2 * cost(best) <= cost((S, g)) else None


def stay(table: Table) -> Move:
    """Everybody where he is (the ring alone gets another size)."""
    D, S, g = table.samples.shape
    places = np.broadcast_to(np.arange(S, dtype=np.int32), (D, S))
    rows = np.arange(S * g, dtype=np.int32).reshape(S, g)
    return Move(table, places, np.where(table.samples == EMPTY, EMPTY, rows).astype(np.int32))


def slots_for(tokens: int, width: int) -> int:
    """Slots of a ring that holds `tokens` tokens, not more than `width`: powers of two at first, then eighths of them,
    since a token reads every slot, filled or not (an eighth: 8 % too many on the average, where powers have 33)."""
    power_of_two = max(1 << max(tokens - 1, 0).bit_length(), _FEWEST_SLOTS)
    step = min(power_of_two, max(power_of_two // 8, _STEP))
    return max(min(-(-tokens // step) * step, width), 1)


def ring_sizes(width: int) -> list[int]:
    """All that `slots_for` gives: 9 up to 2,048 tokens, and four more for each doubling."""
    sizes = [slots_for(1, width)]
    while sizes[-1] < width:
        sizes.append(slots_for(sizes[-1] + 1, width))
    return sizes


def shapes_at_most(size: Size, width: int) -> int:
    """Tables of different sizes that a rollout of up to `width` tokens can come through from one of `size`, however
    many rollouts there are: powers of two of places, halves of the rows of a place, sizes of the ring."""
    places = (size.places * size.rows).bit_length() + 1
    return places * len(divisors(size.rows)) * (len(ring_sizes(width)) + 1)


def power(count: int, most: int) -> int:
    """The smallest of 1, 2, 4, ..., `most` that is not below `count`."""
    return min(1 << max(count - 1, 0).bit_length(), most)


def _places(alive: np.ndarray, prompts: np.ndarray, rows: int, most: int) -> int:
    """Places, a power of two, that hold the rows alive [D,S,g] on every part with `rows` at each."""
    needed = max(_chunks(alive[d], prompts[d], rows) for d in range(len(alive)))
    return power(max(needed, 1), most * alive.shape[2])


def _chunks(alive: np.ndarray, prompts: np.ndarray, rows: int) -> int:
    """Places for the rows alive [S,g] of one part, `rows` of one prompt at each."""
    counts = np.bincount(prompts[prompts != EMPTY], weights=alive.sum(1)[prompts != EMPTY])
    return int(-(-counts // rows).sum())


def _moved(table: Table, alive: np.ndarray, places: int, rows: int) -> Move:
    D = len(alive)
    shape = D, places, rows
    prompts, samples = np.full(shape[:2], EMPTY), np.full(shape, EMPTY)
    old_places, old_rows = np.zeros(shape[:2], np.int32), np.full(shape, EMPTY, np.int32)
    for d in range(D):
        for i, (prompt, at) in enumerate(_groups(table.prompts[d], alive[d], rows)):
            prompts[d, i], old_places[d, i] = prompt, at[0] // alive.shape[2]
            samples[d, i, : len(at)] = table.samples[d].reshape(-1)[at]
            old_rows[d, i, : len(at)] = at
    return Move(Table(prompts, samples), old_places, old_rows)


def _groups(prompts: np.ndarray, alive: np.ndarray, rows: int) -> Iterator[tuple[int, Sequence[int]]]:
    """(prompt, its rows alive, by their number in the table), at most `rows` at a time."""
    of_prompt: dict[int, list[int]] = {}
    for place, row in zip(*np.nonzero(alive)):
        of_prompt.setdefault(int(prompts[place]), []).append(int(place) * alive.shape[1] + int(row))
    for prompt, at in of_prompt.items():
        for start in range(0, len(at), rows):
            yield prompt, at[start : start + rows]
