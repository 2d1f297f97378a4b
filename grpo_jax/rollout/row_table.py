"""The host's table of which completion is in which row, and the decisions about it.

The device sees a table of places with rows (`state.py`), of the same size on each of D shards of the mesh. Between two
segments the host decides which rows stay, how large the table is, and which waiting prompts come in. Only NumPy is
used, and every host decides the same from the same facts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_jax.rollout.state import TableSize

EMPTY = -1
_MIN_SLOTS = 128  # of a ring at first: a smaller one is not worth a compilation
_MIN_GROWTH = 256  # slots by which a ring grows, at least, for the same reason
_ROW_COST = 512  # what a row costs besides the slots that it attends to, in slots
_MIN_GAIN = 4  # while prompts wait, compact when this frees at least one of so many places


Assignments = list[list[tuple[int, np.ndarray]]]
"""For each shard, (prompt, its places) of the prompts that come in."""


@dataclass(frozen=True)
class RowTable:
    """Which prompt is in each place, and which of its samples is in each row; EMPTY for none."""

    prompts: np.ndarray  # [D,S] int
    samples: np.ndarray  # [D,S,g] int

    @staticmethod
    def empty(shards: int, size: TableSize) -> "RowTable":
        """A table without prompts."""
        shape = shards, size.places, size.rows
        return RowTable(np.full(shape[:2], EMPTY), np.full(shape, EMPTY))

    def alive(self, ended: np.ndarray) -> np.ndarray:
        """[D,S,g] bool: rows whose completion has not `ended` [P,G]."""
        return (self.samples != EMPTY) & ~ended[self.prompts[..., None], self.samples]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """[D,S,g]: each row's entry of `values` [P,G]; arbitrary for empty rows."""
        return values[self.prompts[..., None], self.samples]

    @property
    def completions(self) -> tuple[np.ndarray, np.ndarray]:
        """(prompts, samples) of all rows that are not empty: an index into [P,G]."""
        occupied = self.samples != EMPTY
        return np.broadcast_to(self.prompts[..., None], occupied.shape)[occupied], self.samples[occupied]

    def size(self, slots: int) -> TableSize:
        """The table's size, with `slots` slots."""
        _, places, rows = self.samples.shape
        return TableSize(places, rows, slots)

    def assign(self, assignments: Assignments, num_generations: int) -> "RowTable":
        """The table with the `num_generations` completions of each prompt in the places assigned to it."""
        prompts, samples = self.prompts.copy(), self.samples.copy()
        g = samples.shape[2]
        for shard, queue in enumerate(assignments):
            for prompt, places in queue:
                numbers = np.arange(len(places) * g).reshape(-1, g)
                prompts[shard, places] = prompt
                samples[shard, places] = np.where(numbers < num_generations, numbers, EMPTY)
        return RowTable(prompts, samples)

    def free_places(self, ended: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, `count` places of it without live rows), repeatedly, from the shard with most of them."""
        free = [np.flatnonzero(~shard.any(-1)) for shard in self.alive(ended)]
        while True:
            shard = max(range(len(free)), key=lambda d: len(free[d]))
            if len(free[shard]) < count:
                return
            yield shard, free[shard][:count]
            free[shard] = free[shard][count:]


@dataclass(frozen=True)
class Compaction:
    """A new table, and where its places and rows come from, as `Programs.compact` takes them."""

    table: RowTable
    places: np.ndarray  # [D,S'] int32
    rows: np.ndarray  # [D,S',g'] int32


def row_counts(num_generations: int) -> list[int]:
    """The numbers of rows that a place may have: `num_generations`, half of it, and so on down to 1."""
    counts = [num_generations]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    return counts


def initial_size(prompts: int, num_generations: int, slots: int, shards: int, rows: int) -> TableSize:
    """The table of a rollout of P x G completions, at most `rows` at a time over all shards (0: all).

    If all fit, a place has all completions of its prompt. If prompts must wait, a place has a quarter of them: a place
    is reused as soon as its rows have ended, and a prompt's cache is held at most four times.
    """
    prompts_each = -(-prompts // shards)
    if not rows or prompts_each * num_generations * shards <= rows:
        return TableSize(prompts_each, num_generations, slots)
    g = -(-num_generations // 4)
    places_per_prompt = -(-num_generations // g)
    fitting = max(rows // shards // g // places_per_prompt, 1)
    return TableSize(min(fitting, prompts_each) * places_per_prompt, g, slots)


def plan_compaction(
    table: RowTable, slots: int, ended: np.ndarray, prompt_width: int, waiting: bool
) -> Compaction | None:
    """Where the live rows should go for the next segment, with `slots` slots; None: they stay.

    While prompts are `waiting` the table keeps its size, and rows move together when that frees enough places.
    Otherwise the table shrinks as soon as another size costs half as much: fewer places, or fewer rows in each.
    """
    alive, (_, S, g) = table.alive(ended), table.samples.shape
    if waiting:
        needed = sum(_chunks(alive[d], table.prompts[d], g) for d in range(len(alive)))
        gain = alive.any(-1).sum() - needed
        return _compacted(table, alive, S, g) if gain * _MIN_GAIN >= len(alive) * S else None
    cost = lambda shape: shape[0] * (shape[1] * (slots + _ROW_COST) + prompt_width)
    choices = [(_places_needed(alive, table.prompts, rows, S), rows) for rows in row_counts(g)]
    best = min(choices, key=cost)
    return _compacted(table, alive, *best) if 2 * cost(best) <= cost((S, g)) else None


def keep_rows(table: RowTable) -> Compaction:
    """Every row stays where it is; only the ring gets another size."""
    D, S, g = table.samples.shape
    places = np.broadcast_to(np.arange(S, dtype=np.int32), (D, S))
    rows = np.arange(S * g, dtype=np.int32).reshape(S, g)
    return Compaction(table, places, np.where(table.samples == EMPTY, EMPTY, rows).astype(np.int32))


def ring_slots(tokens: int, longest: int) -> int:
    """Slots of a ring that holds `tokens` tokens, at most `longest`: powers of two at first, then eighths of them,
    since a token reads every slot, filled or not (on average 8 % too many with eighths, 33 % with powers)."""
    power = max(1 << max(tokens - 1, 0).bit_length(), _MIN_SLOTS)
    step = min(power, max(power // 8, _MIN_GROWTH))
    return max(min(-(-tokens // step) * step, longest), 1)


def ring_sizes(longest: int) -> list[int]:
    """All values of `ring_slots`: 9 up to 2,048 tokens, and four more for each doubling."""
    sizes = [ring_slots(1, longest)]
    while sizes[-1] < longest:
        sizes.append(ring_slots(sizes[-1] + 1, longest))
    return sizes


def max_table_sizes(size: TableSize, longest: int) -> int:
    """How many different table sizes rollouts of up to `longest` tokens can reach from `size`, however many rollouts
    there are: powers of two of places, halves of the rows of a place, sizes of the ring."""
    places = (size.places * size.rows).bit_length() + 1
    return places * len(row_counts(size.rows)) * (len(ring_sizes(longest)) + 1)


def power_of_two(count: int, most: int) -> int:
    """The smallest of 1, 2, 4, ..., `most` that is at least `count`."""
    return min(1 << max(count - 1, 0).bit_length(), most)


def _places_needed(alive: np.ndarray, prompts: np.ndarray, rows: int, most: int) -> int:
    """Places with `rows` rows, a power of two, that hold the live rows [D,S,g] of every shard."""
    needed = max(_chunks(alive[d], prompts[d], rows) for d in range(len(alive)))
    return power_of_two(max(needed, 1), most * alive.shape[2])


def _chunks(alive: np.ndarray, prompts: np.ndarray, rows: int) -> int:
    """How many places with `rows` rows the live rows [S,g] of one shard need."""
    counts = np.bincount(prompts[prompts != EMPTY], weights=alive.sum(1)[prompts != EMPTY])
    return int(-(-counts // rows).sum())


def _compacted(table: RowTable, alive: np.ndarray, places: int, rows: int) -> Compaction:
    """The live rows in a table of `places` places with `rows` rows."""
    D = len(alive)
    shape = D, places, rows
    prompts, samples = np.full(shape[:2], EMPTY), np.full(shape, EMPTY)
    old_places, old_rows = np.zeros(shape[:2], np.int32), np.full(shape, EMPTY, np.int32)
    for d in range(D):
        for i, (prompt, numbers) in enumerate(_split_by_prompt(table.prompts[d], alive[d], rows)):
            prompts[d, i], old_places[d, i] = prompt, numbers[0] // alive.shape[2]
            samples[d, i, : len(numbers)] = table.samples[d].reshape(-1)[numbers]
            old_rows[d, i, : len(numbers)] = numbers
    return Compaction(RowTable(prompts, samples), old_places, old_rows)


def _split_by_prompt(
    prompts: np.ndarray, alive: np.ndarray, rows: int
) -> Iterator[tuple[int, Sequence[int]]]:
    """(prompt, the numbers of its live rows in the table), at most `rows` at a time."""
    by_prompt: dict[int, list[int]] = {}
    for place, row in zip(*np.nonzero(alive)):
        by_prompt.setdefault(int(prompts[place]), []).append(int(place) * alive.shape[1] + int(row))
    for prompt, numbers in by_prompt.items():
        for start in range(0, len(numbers), rows):
            yield prompt, numbers[start : start + rows]
