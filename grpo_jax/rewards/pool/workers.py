"""The worker pool: starts workers, hands them units, enforces their deadlines and replaces those that fail.

All of it runs on the thread of `stream.Driver`: a worker process ends with the thread that started it.
"""

import json
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from multiprocessing.connection import wait
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.rewards.load import Reward, is_async
from grpo_jax.rewards.pool.batch import RewardBatch, Unit
from grpo_jax.rewards.pool.replies import OFFER
from grpo_jax.rewards.pool.serialize import Packed, pack
from grpo_jax.rewards.pool.wakeup import WakeupPipe
from grpo_jax.rewards.pool.worker_handle import WorkerHandle, WorkerProcess, WorkerThread

START_SECONDS = 300.0
"""Longest time a worker may take to start. Most of it is spent importing the user's file."""
START_TRIES = 3
"""Consecutive workers that may end before they are ready (the system may kill one that runs out of memory)."""
GRACE_SECONDS = 1.0
"""Time beyond the deadline that a worker gets to cancel async functions before it is killed."""
CLOSE_SECONDS = 1.0
"""Time that idle workers get to exit by themselves (flush files, run exit handlers) before they are killed."""


class WorkerPool:
    """At most `workers` processes (None: one per core, at most 8), and a thread for functions that cannot be pickled.
    Those `in_process` (indices) are none of its business.

    A unit of a plain function goes to any idle worker. All units of async functions go to one worker, which runs
    them concurrently; later ones join them.
    """

    def __init__(
        self,
        functions: Sequence[Reward],
        workers: int | None,
        timeout: float,
        in_process: Set[int] = frozenset(),
    ):
        self.functions, self.in_process = functions, in_process
        self.max_workers = workers or min(_cores(), 8)
        self.timeout = timeout
        self.async_functions = {i for i, reward in enumerate(functions) if is_async(reward.function)}
        self.workers: list[WorkerHandle] = []
        self.local: set[int] = set()  # indices of the functions that run in a thread of this process
        self._packed: list[Packed] = []
        self._lost_starts = 0  # consecutive workers that ended before they were ready

    def pack(self) -> None:
        """Pickle the functions, once. The caller's thread does this, because it owns the objects among them."""
        if self._packed:
            return
        here = ("absent", "it runs in the trainer's process")
        self._packed = [here if i in self.in_process else pack(f) for i, f in enumerate(self.functions)]
        for index, (kind, why) in enumerate(self._packed):
            if kind == "absent" and index not in self.in_process:
                self._run_locally(index, why)

    def close(self) -> None:
        """End all workers; `dispatch` starts new ones."""
        workers, self.workers = self.workers, []
        until = time.monotonic() + CLOSE_SECONDS
        for worker in workers:
            worker.connection.close()  # tell all of them before waiting for the first
        for worker in workers:
            worker.end(patience=max(until - time.monotonic(), 0.0) if worker.idle else 0.0)

    def interrupt(self) -> None:
        """End the workers that owe an answer: a late answer must not be taken for one of the next batch."""
        for worker in [worker for worker in self.workers if worker.busy]:
            self._end(worker)

    @property
    def busy(self) -> bool:
        return any(worker.busy for worker in self.workers)

    def dispatch(self, batch: RewardBatch) -> None:
        """Give units to every idle worker, and start workers while there are more units than idle workers."""
        self._start_workers(batch)
        for in_process in (False, True):
            self._dispatch_async(batch, in_process)
        for worker in [worker for worker in self.workers if worker.idle]:
            units = self._runnable(batch.waiting, worker.in_process)
            if units:
                self._give(worker, units[:1], batch)

    def collect(self, batch: RewardBatch, wakeup: WakeupPipe) -> None:
        """Wait until a busy or starting worker answers, ends or passes its deadline, or until the wakeup pipe is
        readable, and act on it."""
        active = [worker for worker in self.workers if not worker.idle]
        if not active and (batch.waiting or batch.concurrent):
            return  # a worker was lost while it was idle: `dispatch` starts another
        patience = max(min(worker.deadline for worker in active) - time.monotonic(), 0.0) if active else None
        answered = wait([wakeup.connection, *(worker.connection for worker in active)], patience)
        if wakeup.connection in answered:
            wakeup.drain()
        for worker in active:
            if worker.connection in answered:
                self._receive(worker, batch)
            # Poll again: this thread may have been suspended since `wait` returned.
            elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                self._expire(worker, batch)

    def _runnable(self, units: Iterable[Unit], in_process: bool) -> list[Unit]:
        """The units that run in this process (`in_process`), or those that run in a worker process."""
        if not self.local:
            return [] if in_process else list(units)
        return [unit for unit in units if (unit.function in self.local) == in_process]

    def _dispatch_async(self, batch: RewardBatch, in_process: bool) -> None:
        """Offer async units to the worker that already runs some, or give them to an idle worker."""
        units = self._runnable(batch.concurrent, in_process)
        workers = [worker for worker in self.workers if worker.in_process == in_process]
        if not units:
            return
        if joint := next((worker for worker in workers if worker.joint and worker.busy), None):
            self._offer(joint)
        elif idle := next((worker for worker in workers if worker.idle), None):
            self._give(idle, units, batch, joint=True)

    def _offer(self, worker: WorkerHandle) -> None:
        if not worker.offered:
            worker.offered = True
            self._send(worker, OFFER)

    def _give(
        self, worker: WorkerHandle, units: Sequence[Unit], batch: RewardBatch, joint: bool = False
    ) -> None:
        """Send units to a listening worker and remove them from the batch. If the worker has ended, they stay there."""
        numbered = dict(zip(worker.numbers, units))
        if not self._send(worker, batch.request(numbered, worker.state)):
            return
        queue: deque[Unit] = batch.concurrent if joint else batch.waiting
        for unit in units:
            queue.remove(unit)
        worker.units |= numbered
        worker.state, worker.joint = batch.state, joint
        self._extend_deadline(worker)

    def _send(self, worker: WorkerHandle, message: bytes) -> bool:
        try:
            worker.connection.send_bytes(message)
        except OSError:
            if not worker.busy:  # it ended while idle, so these units are not at fault
                self._end(worker)
            return False  # a busy one: `collect` reads the end of its connection next
        return True

    def _extend_deadline(self, worker: WorkerHandle) -> None:
        """Restart the time within which a worker must answer."""
        has_async = any(unit.function in self.async_functions for unit in worker.units.values())
        worker.deadline = time.monotonic() + self.timeout + GRACE_SECONDS * has_async

    def _start_workers(self, batch: RewardBatch) -> None:
        processes = [worker for worker in self.workers if not worker.in_process]
        jobs = len(self._runnable(batch.waiting, False))
        if self._runnable(batch.concurrent, False) and not any(
            worker.joint and worker.busy for worker in processes
        ):
            jobs += 1
        free = sum(not worker.busy for worker in processes)
        for _ in range(min(jobs - free, self.max_workers - len(processes))):
            self.workers.append(WorkerProcess(self._packed, self.timeout, time.monotonic() + START_SECONDS))
        for_thread = self._runnable([*batch.waiting, *batch.concurrent], True)
        if for_thread and not any(worker.in_process for worker in self.workers):
            self.workers.append(WorkerThread([reward.function for reward in self.functions], self.timeout))

    def _run_locally(self, index: int, why: str) -> None:
        self.local.add(index)
        warnings.warn(
            f"reward '{self.functions[index].name}' cannot be sent to a worker process ({why}), so it runs inside "
            "the trainer, where it cannot be killed if it hangs. Put it in a file of its own: file.py:function",
            stacklevel=2,
        )

    def _receive(self, worker: WorkerHandle, batch: RewardBatch) -> None:
        try:
            reply = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._end(worker)
            self._died(worker, batch)
            return
        if not worker.ready:
            worker.ready, self._lost_starts = True, 0
            self._not_loaded(reply["failed"])
        elif "listening" in reply:
            self._give(worker, self._runnable(batch.concurrent, worker.in_process), batch, joint=True)
            worker.offered = False
        else:
            self._settle(worker.units.pop(reply["unit"]), reply, batch)
            self._extend_deadline(worker)

    def _settle(self, unit: Unit, reply: Mapping[str, Any], batch: RewardBatch) -> None:
        if "timeout" in reply:
            batch.fail(unit, "timeouts", self._too_long())
        elif "error" in reply:
            batch.fail(unit, "errors", reply["error"])
        else:
            batch.accept(unit, reply)

    def _lose(self, worker: WorkerHandle, kind: str, why: str, batch: RewardBatch) -> None:
        """A worker will not answer its units. A single unit is at fault itself; of several, any one may be."""
        units, worker.units = list(worker.units.values()), {}
        if len(units) == 1:
            batch.fail(units[0], kind, why)
        else:
            batch.requeue(units)

    def _died(self, worker: WorkerHandle, batch: RewardBatch) -> None:
        if worker.ready:
            self._lose(worker, "errors", f"the process it ran in ended ({worker.exit_reason})", batch)
            return
        self._lost_starts += 1
        if self._lost_starts >= START_TRIES:
            raise UserError(
                f"rewards: a worker process ended ({worker.exit_reason}) while it loaded {self._sources()}; "
                "its output is above"
            )

    def _expire(self, worker: WorkerHandle, batch: RewardBatch) -> None:
        self._end(worker)
        if not worker.ready:
            raise UserError(
                f"rewards: a worker process did not load {self._sources()} in {START_SECONDS:g} s"
            )
        still = "; it cannot be killed and keeps running in the background" if worker.in_process else ""
        self._lose(worker, "timeouts", self._too_long() + still, batch)

    def _too_long(self) -> str:
        return f"took longer than reward_timeout, {self.timeout:g} s"

    def _not_loaded(self, failed: Mapping[str, str]) -> None:
        """Handle the functions that a ready worker could not load: an object runs locally instead, a named function
        is the user's error."""
        for index, why in ((int(i), why) for i, why in failed.items()):
            reward = self.functions[index]
            if reward.spec:
                raise UserError(f"rewards: a worker process cannot load '{reward.spec}': {why}")
            if index not in self.local:
                self._run_locally(index, why)

    def _sources(self) -> str:
        return ", ".join(reward.spec or reward.name for reward in self.functions)

    def _end(self, worker: WorkerHandle) -> None:
        self.workers.remove(worker)
        worker.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
