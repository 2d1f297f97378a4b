"""One rollout under way: what the devices are told to do next, and what is read of what they did."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.qwen import Params
from grpo_jax.rollout import row_table as tables
from grpo_jax.rollout.budget import prompts_at_a_time
from grpo_jax.rollout.decoding import Newcomers
from grpo_jax.rollout.output_buffer import Collected
from grpo_jax.rollout.programs import Programs
from grpo_jax.rollout.row_table import EMPTY, Move, Seats, Table
from grpo_jax.rollout.state import Drawn
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, on_cpu, row_shards


@dataclass(frozen=True)
class Prompts:
    """P prompts, whole on every host."""

    tokens: np.ndarray  # [P,Tp] int32, right-padded
    lengths: np.ndarray  # [P] int32
    uids: np.ndarray  # [P] uint32
    keys: np.ndarray | None = None  # [P,2] uint32, data of a key for each, in place of the rollout's


@dataclass(frozen=True)
class Part:
    """What was drawn, and for whom, but is not read yet."""

    drawn: Drawn
    table: Table
    first: np.ndarray  # [D,S,g] int32, the position of the first token of each row


class Session:
    """The rollout of `prompts` into `collected`, at most `rows` completions at a time over all devices (0: all)."""

    def __init__(
        self,
        programs: Programs,
        params: Params,
        key: Array,
        prompts: Prompts,
        collected: Collected,
        rows: int,
        mesh: Mesh,
    ):
        self.programs, self.params, self.key, self.mesh = programs, params, key, mesh
        self.prompts, self.collected = prompts, collected
        self.waiting = deque(np.flatnonzero(~collected.ended.all(1)).tolist())
        # [P,G] tokens that the devices were told to draw
        self.sent: np.ndarray[tuple[int, int], Any] = np.zeros_like(collected.limits)
        self.longest = max(int(collected.limits.max(initial=1)) - 1, 1)  # the last token is never attended to
        parts = row_shards(mesh)
        first = tables.slots_for(min(programs.count, self.longest), self.longest)
        P, G = self.sent.shape
        self.size = tables.first_size(P, G, first, parts, rows)
        self.table = Table.empty(parts, self.size)
        self.state = programs.blank(self.size, prompts.tokens.shape[1], params)

    def groups(self) -> Iterator[int]:
        """Draw everything; gives each prompt as soon as all its completions have ended."""
        pending: deque[list[Part]] = deque()
        yield from self.collected.complete()
        while not self.collected.ended.all():
            self._rearrange()
            sent = [*self._admit(), *self._extend()]
            pending.append(sent)
            while len(pending) > (self._ahead if sent else 0):
                self._read(pending.popleft())
            yield from self.collected.complete()

    @property
    def _ahead(self) -> int:
        """Segments on the devices that are not read yet. Virtual CPU devices must not have two programs with
        collectives under way: they wait for one another."""
        virtual = self.mesh.size > 1 and on_cpu(self.mesh)
        return 0 if virtual else 1

    def _read(self, parts: list[Part]) -> None:
        for part in parts:
            self.collected.add(part.drawn, part.table, part.first)

    def _extend(self) -> Iterator[Part]:
        """The next segment of every row of the table, if any has tokens left to draw."""
        alive, first = self.table.alive(self.collected.ended), self.table.of_rows(self.sent)
        if not (alive & (first < self.table.of_rows(self.collected.limits))).any():
            return
        self.state, drawn = self.programs.extend(self.params, self.state)
        here = self.table.rows
        self.sent[here] = self._after_a_segment[here]
        yield Part(drawn, self.table, first)

    def _rearrange(self) -> None:
        """Let rows leave and the ring of the cache grow, where it is time."""
        needed, slots, waiting = self._slots_needed(), self.size.slots, bool(self.waiting)
        most, width = max(slots, needed), self.prompts.tokens.shape[1]
        move = tables.move(self.table, most, self.collected.ended, width, waiting)
        if move is None and needed > slots:
            move = tables.stay(self.table)
        if move is not None:
            self._carry_out(move, most if waiting else needed)

    def _carry_out(self, move: Move, slots: int) -> None:
        places, rows = self._put(move.places), self._put(move.rows)
        self.state = self.programs.rearranged(self.state, slots, places, rows)
        self.table, self.size = move.table, move.table.size(slots)

    @property
    def _after_a_segment(self) -> np.ndarray:
        """[P,G] tokens that the devices were told to draw, with one more segment."""
        return np.minimum(self.sent + self.programs.count, self.collected.limits)

    def _slots_needed(self) -> int:
        """What the ring must have for the next segment."""
        alive = self.table.alive(self.collected.ended)
        longest = int(self.table.of_rows(self._after_a_segment)[alive].max(initial=1)) - 1
        return tables.slots_for(max(longest, min(self.programs.count, self.longest)), self.longest)

    def _put(self, x: np.ndarray) -> Array:
        """[D,n,...] as [D*n,...], each part's own where its rows are."""
        return hosts.put(x.reshape(-1, *x.shape[2:]), by_rows(self.mesh))

    def _admit(self) -> Iterator[Part]:
        """Waiting prompts take the free places."""
        times = -(-self.sent.shape[1] // self.size.rows)
        seats: Seats = [[] for _ in self.table.prompts]
        for part, places in self.table.seats(self.collected.ended, times):
            if not self.waiting:
                break
            seats[part].append((self.waiting.popleft(), places))
        at_a_time = prompts_at_a_time(self.prompts.tokens.shape[1])
        for start in range(0, max(map(len, seats)), at_a_time):
            yield self._admitted([queue[start : start + at_a_time] for queue in seats], at_a_time)

    def _admitted(self, seats: Seats, most: int) -> Part:
        """Read the prompts of `seats`, on each part (prompt, its places)."""
        most = min(most, self.size.places)
        m = tables.power(max(map(len, seats)), most)
        new, table = self._newcomers(seats, m)
        self.state, drawn = self.programs.admit(
            self.params, self.key, self.state, jax.tree.map(self._put, new)
        )
        self.table = self.table.seated(seats, self.sent.shape[1])
        self.sent[table.rows] = 1
        return Part(drawn, table, np.zeros(table.samples.shape, np.int32))

    def _newcomers(self, seats: Seats, m: int) -> tuple[Newcomers, Table]:
        """The arrays [D,m,...] for `admit`, filled up with nobody, and the table that they make."""
        D, G, g = len(seats), self.sent.shape[1], self.size.rows
        times = -(-G // g)
        who = np.full((D, m), EMPTY)
        places = np.full((D, m, times), self.size.places, np.int32)
        for part, queue in enumerate(seats):
            for i, (prompt, at) in enumerate(queue):
                who[part, i], places[part, i] = prompt, at
        samples = np.full((D, m, times * g), EMPTY)
        samples[..., :G] = np.where(who[..., None] == EMPTY, EMPTY, np.arange(G))
        limits = np.where(samples == EMPTY, 0, self.collected.limits[who[..., None], samples])
        samples = samples.reshape(D, m * times, g)
        new: Any = Newcomers(  # of NumPy arrays
            tokens=self.prompts.tokens[who].astype(np.int32),
            lengths=self.prompts.lengths[who].astype(np.int32),
            uids=self.prompts.uids[who].astype(np.uint32),
            places=places,  # type: ignore[arg-type]
            limits=limits.reshape(D, m, times, g).astype(np.int32),  # type: ignore[arg-type]
            keys=None if self.prompts.keys is None else self.prompts.keys[who],  # type: ignore[arg-type]
        )
        return new, Table(np.repeat(who, times, axis=1), samples)
