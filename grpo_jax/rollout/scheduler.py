"""Drives one rollout: schedules device programs and collects their output."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.transformer import Params
from grpo_jax.rollout import row_table
from grpo_jax.rollout.budget import prompts_per_prefill
from grpo_jax.rollout.decoding import PrefillBatch
from grpo_jax.rollout.output_buffer import OutputBuffer
from grpo_jax.rollout.programs import Programs
from grpo_jax.rollout.protocol import OnProgress, PromptTokens, RolloutProgress
from grpo_jax.rollout.row_table import EMPTY, Assignments, Compaction, RowTable
from grpo_jax.rollout.state import SampledTokens
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, on_cpu, row_shards


@dataclass(frozen=True)
class PendingTokens:
    """Tokens on the devices that the host has not read yet, and the rows that they belong to."""

    sampled: SampledTokens
    table: RowTable
    first: np.ndarray  # [D,S,g] int32, the position of the first token of each row


class Scheduler:
    """The rollout of P prompts into `output`, with at most `rows` completions at a time over all shards (0: all).

    prompt_keys: [P,2] uint32, key data of each prompt, in place of the rollout's `key`.
    """

    def __init__(
        self,
        programs: Programs,
        params: Params,
        *,
        key: Array,
        prompts: PromptTokens,
        prompt_keys: np.ndarray | None,
        output: OutputBuffer,
        rows: int,
        mesh: Mesh,
        on_progress: OnProgress | None = None,
    ):
        self.programs, self.params, self.key, self.mesh = programs, params, key, mesh
        self.prompts, self.prompt_keys, self.output = prompts, prompt_keys, output
        self.on_progress, self.steps = on_progress, 0  # tokens that were read after one another
        self.waiting = deque(np.flatnonzero(~output.ended.all(1)).tolist())
        # [P,G] tokens of each completion that programs were dispatched for
        self.dispatched: np.ndarray[tuple[int, int], Any] = np.zeros_like(output.limits)
        self.longest = max(int(output.limits.max(initial=1)) - 1, 1)  # the last token is never attended to
        shards = row_shards(mesh)
        slots = row_table.ring_slots(min(programs.count, self.longest), self.longest)
        P, self.num_generations = self.dispatched.shape
        self.prompt_width = prompts.tokens.shape[1]
        self.size = row_table.initial_size(P, self.num_generations, slots, shards, rows)
        self.table = RowTable.empty(shards, self.size)
        self.state = programs.empty_state(self.size, self.prompt_width, params)

    def run(self) -> Iterator[int]:
        """Sample everything; yields each prompt as soon as all its completions have ended."""
        pending: deque[list[PendingTokens]] = deque()
        yield from self.output.completed_prompts()
        while not self.output.ended.all():
            self._compact()
            dispatched = [*self._prefill_waiting(), *self._decode_segment()]
            pending.append(dispatched)
            while len(pending) > (self._max_pending if dispatched else 0):
                self._read(pending.popleft())
            yield from self.output.completed_prompts()

    @property
    def _max_pending(self) -> int:
        """Segments on the devices that need not be read yet. Virtual CPU devices must not run two programs with
        collectives at a time: they would wait for one another."""
        virtual = self.mesh.size > 1 and on_cpu(self.mesh)
        return 0 if virtual else 1

    def _read(self, pending: list[PendingTokens]) -> None:
        for tokens in pending:
            self.output.add(tokens.sampled, tokens.table, tokens.first)
            self.steps += tokens.sampled.tokens.shape[-1]
        if self.on_progress:
            self.on_progress(self._progress())

    def _progress(self) -> RolloutProgress:
        """How far the rollout is."""
        output = self.output
        left = np.where(output.ended, 0, output.limits - output.lengths).max(1)  # [P]
        waiting = np.array(self.waiting, int)
        at_a_time = max(len(self.table.prompts) * self.size.places // self._places_per_prompt, 1)
        turns = -(-len(waiting) // at_a_time)
        return RolloutProgress(
            completions=output.ended.size,
            ended=int(output.ended.sum()),
            tokens=int(output.lengths.sum()),
            steps=self.steps,
            steps_left=int(np.delete(left, waiting).max(initial=0) + turns * left[waiting].max(initial=0)),
        )

    # ---- decode ----

    def _decode_segment(self) -> Iterator[PendingTokens]:
        """The next segment of every row, if any row needs more tokens."""
        alive, first = self.table.alive(self.output.ended), self.table.gather(self.dispatched)
        if not (alive & (first < self.table.gather(self.output.limits))).any():
            return
        self.state, sampled = self.programs.decode(self.params, self.state)
        completions = self.table.completions
        self.dispatched[completions] = self._after_next_segment[completions]
        yield PendingTokens(sampled, self.table, first)

    @property
    def _after_next_segment(self) -> np.ndarray:
        """[P,G] `dispatched` with one more segment."""
        return np.minimum(self.dispatched + self.programs.count, self.output.limits)

    # ---- compaction ----

    def _compact(self) -> None:
        """Drop rows that have ended and grow the cache's ring, if either is due."""
        needed, slots, waiting = self._slots_needed(), self.size.slots, bool(self.waiting)
        largest = max(slots, needed)
        compaction = row_table.plan_compaction(
            self.table, largest, self.output.ended, self.prompt_width, waiting
        )
        if compaction is None and needed > slots:
            compaction = row_table.keep_rows(self.table)
        if compaction is not None:
            self._apply(compaction, largest if waiting else needed)

    def _apply(self, compaction: Compaction, slots: int) -> None:
        places, rows = self._put(compaction.places), self._put(compaction.rows)
        self.state = self.programs.compact(self.state, slots, places, rows)
        self.table, self.size = compaction.table, compaction.table.size(slots)

    def _slots_needed(self) -> int:
        """Slots of the ring for the next segment."""
        alive = self.table.alive(self.output.ended)
        longest = int(self.table.gather(self._after_next_segment)[alive].max(initial=1)) - 1
        return row_table.ring_slots(max(longest, min(self.programs.count, self.longest)), self.longest)

    def _put(self, x: np.ndarray) -> Array:
        """[D,n,...] as [D*n,...] on the devices, each shard's part with its rows."""
        return hosts.put(x.reshape(-1, *x.shape[2:]), by_rows(self.mesh))

    # ---- prefill ----

    def _prefill_waiting(self) -> Iterator[PendingTokens]:
        """Put waiting prompts into the free places."""
        assignments: Assignments = [[] for _ in self.table.prompts]
        for shard, places in self.table.free_places(self.output.ended, self._places_per_prompt):
            if not self.waiting:
                break
            assignments[shard].append((self.waiting.popleft(), places))
        at_a_time = prompts_per_prefill(self.prompt_width)
        for start in range(0, max(map(len, assignments)), at_a_time):
            yield self._prefill([queue[start : start + at_a_time] for queue in assignments], at_a_time)

    @property
    def _places_per_prompt(self) -> int:
        return -(-self.num_generations // self.size.rows)

    def _prefill(self, assignments: Assignments, at_a_time: int) -> PendingTokens:
        """Read the assigned prompts, at most `at_a_time` on each shard."""
        m = row_table.power_of_two(max(map(len, assignments)), min(at_a_time, self.size.places))
        batch, table = self._prefill_batch(assignments, m)
        batch = jax.tree.map(self._put, batch)
        self.state, sampled = self.programs.prefill(self.params, self.key, self.state, batch)
        self.table = self.table.assign(assignments, self.num_generations)
        self.dispatched[table.completions] = 1
        return PendingTokens(sampled, table, np.zeros(table.samples.shape, np.int32))

    def _prefill_batch(self, assignments: Assignments, m: int) -> tuple[PrefillBatch, RowTable]:
        """The arrays [D,m,...] of a prefill, with empty entries up to m on each shard, and the table of its rows."""
        D, G, g, per_prompt = len(assignments), self.num_generations, self.size.rows, self._places_per_prompt
        prompts = np.full((D, m), EMPTY)
        places = np.full((D, m, per_prompt), self.size.places, np.int32)
        for shard, queue in enumerate(assignments):
            for i, (prompt, own_places) in enumerate(queue):
                prompts[shard, i], places[shard, i] = prompt, own_places
        samples = np.full((D, m, per_prompt * g), EMPTY)
        samples[..., :G] = np.where(prompts[..., None] == EMPTY, EMPTY, np.arange(G))
        limits = np.where(samples == EMPTY, 0, self.output.limits[prompts[..., None], samples])
        batch: Any = PrefillBatch(  # of NumPy arrays
            tokens=self.prompts.tokens[prompts].astype(np.int32),
            lengths=self.prompts.lengths[prompts].astype(np.int32),
            uids=self.prompts.uids[prompts].astype(np.uint32),
            places=places,  # type: ignore[arg-type]
            limits=limits.reshape(D, m, per_prompt, g).astype(np.int32),  # type: ignore[arg-type]
            keys=None if self.prompt_keys is None else self.prompt_keys[prompts],  # type: ignore[arg-type]
        )
        return batch, RowTable(np.repeat(prompts, per_prompt, axis=1), samples.reshape(D, m * per_prompt, g))
