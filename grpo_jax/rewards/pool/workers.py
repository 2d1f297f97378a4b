"""The workers of a pool: who does what, until when, and what happens to a worker that fails.

All of it runs on one thread, the one of `stream.Driver`: a worker process ends with the thread that started it.
"""

import json
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.rewards.load import Reward, is_async
from grpo_jax.rewards.pool.batch import Batch, Unit
from grpo_jax.rewards.pool.replies import OFFER
from grpo_jax.rewards.pool.serialize import Packed, pack
from grpo_jax.rewards.pool.wakeup import Bell
from grpo_jax.rewards.pool.worker_handle import Lane, ProcessLane, ThreadLane

START_SECONDS = 300.0
"""Longest start of a worker, most of it the imports of the user's file."""
START_TRIES = 3
"""Workers in a row that may end before they are ready (the system may kill one, for want of memory)."""
GRACE_SECONDS = 1.0
"""What a worker gets beyond the deadline to give up an async function that waits, before it is killed itself."""
CLOSE_SECONDS = 1.0
"""What idle workers get to end on their own (flush files, run their exit handlers) before they are killed."""


class Crew:
    """At most `workers` processes (0: as many as cores, at most 8), and a thread for functions that stay here.

    A unit of a plain function goes to whichever lane is free. Units of async functions go to one lane, all that
    are there at once, and those that come later join them.
    """

    def __init__(self, functions: Sequence[Reward], workers: int, timeout: float):
        self.functions = functions
        self.workers = workers or min(_cores(), 8)
        self.timeout = timeout
        self.patient = {i for i, reward in enumerate(functions) if is_async(reward.function)}
        self.lanes: list[Lane] = []
        self.stays: set[int] = set()  # indices of functions that cannot leave this process
        self._packed: list[Packed] = []
        self._lost_starts = 0  # workers in a row that ended before they were ready

    def pack(self) -> None:
        """Make the functions ready to travel, once. Objects among them belong to the thread of the caller."""
        if self._packed:
            return
        self._packed = [pack(reward) for reward in self.functions]
        for index, (kind, why) in enumerate(self._packed):
            if kind == "absent":
                self._keep_here(index, why)

    def close(self) -> None:
        """End all workers; they would be started anew."""
        lanes, self.lanes = self.lanes, []
        until = time.monotonic() + CLOSE_SECONDS
        for lane in lanes:
            lane.connection.close()  # tell all before waiting for any
        for lane in lanes:
            lane.end(patience=max(until - time.monotonic(), 0.0) if lane.idle else 0.0)

    def interrupt(self) -> None:
        """End those that owe an answer: a late one must not be taken for one of the next batch."""
        for lane in [lane for lane in self.lanes if lane.busy]:
            self._end(lane)

    @property
    def busy(self) -> bool:
        return any(lane.busy for lane in self.lanes)

    def dispatch(self, batch: Batch) -> None:
        """Give every idle lane units that it can do; start lanes while there is work for more."""
        self._start_lanes(batch)
        for here in (False, True):
            self._bring_together(batch, here)
        for lane in [lane for lane in self.lanes if lane.idle]:
            units = self._suited(batch.waiting, lane.in_process)
            if units:
                self._give(lane, units[:1], batch)

    def collect(self, batch: Batch, bell: Bell) -> None:
        """Wait for the next answer, end or deadline among the lanes that owe one, or for the bell, and act on it."""
        owing = [lane for lane in self.lanes if not lane.idle]
        if not owing and (batch.waiting or batch.together):
            return  # a lane was lost while it was idle
        patience = max(min(lane.deadline for lane in owing) - time.monotonic(), 0.0) if owing else None
        answered = wait([bell.connection, *(lane.connection for lane in owing)], patience)
        if bell.connection in answered:
            bell.silence()
        for lane in owing:
            if lane.connection in answered:
                self._receive(lane, batch)
            # Asked again: this thread may have been kept from its work since `wait` looked.
            elif time.monotonic() >= lane.deadline and not lane.connection.poll():
                self._expire(lane, batch)

    def _suited(self, units: Iterable[Unit], here: bool) -> list[Unit]:
        """Those that run in this process, or those that do not."""
        if not self.stays:
            return [] if here else list(units)
        return [unit for unit in units if (unit.function in self.stays) == here]

    def _bring_together(self, batch: Batch, here: bool) -> None:
        """Units that wait side by side: offer them to the lane that has such already, or else take an idle one."""
        units = self._suited(batch.together, here)
        lanes = [lane for lane in self.lanes if lane.in_process == here]
        if not units:
            return
        if joint := next((lane for lane in lanes if lane.joint and lane.busy), None):
            self._offer(joint)
        elif idle := next((lane for lane in lanes if lane.idle), None):
            self._give(idle, units, batch, joint=True)

    def _offer(self, lane: Lane) -> None:
        if not lane.offered:
            lane.offered = True
            self._send(lane, OFFER)

    def _give(self, lane: Lane, units: Sequence[Unit], batch: Batch, joint: bool = False) -> None:
        """Send units to a lane that listens, and take them off the batch; they stay there if it has ended."""
        numbered = dict(zip(lane.numbers, units))
        if not self._send(lane, batch.request(numbered, lane.state)):
            return
        queue: deque[Unit] = batch.together if joint else batch.waiting
        for unit in units:
            queue.remove(unit)
        lane.units |= numbered
        lane.state, lane.joint = batch.state, joint
        self._be_patient(lane)

    def _send(self, lane: Lane, message: bytes) -> bool:
        try:
            lane.connection.send_bytes(message)
        except OSError:
            if not lane.busy:  # it ended while idle, through no fault of what it was to do
                self._end(lane)
            return False  # else the end of its connection is read next
        return True

    def _be_patient(self, lane: Lane) -> None:
        """Count anew the time in which a lane must say something."""
        patient = any(unit.function in self.patient for unit in lane.units.values())
        lane.deadline = time.monotonic() + self.timeout + GRACE_SECONDS * patient

    def _start_lanes(self, batch: Batch) -> None:
        processes = [lane for lane in self.lanes if not lane.in_process]
        jobs = len(self._suited(batch.waiting, False))
        if self._suited(batch.together, False) and not any(lane.joint and lane.busy for lane in processes):
            jobs += 1
        free = sum(not lane.busy for lane in processes)
        for _ in range(min(jobs - free, self.workers - len(processes))):
            self.lanes.append(ProcessLane(self._packed, self.timeout, time.monotonic() + START_SECONDS))
        here = self._suited([*batch.waiting, *batch.together], True)
        if here and not any(lane.in_process for lane in self.lanes):
            self.lanes.append(ThreadLane([reward.function for reward in self.functions], self.timeout))

    def _keep_here(self, index: int, why: str) -> None:
        self.stays.add(index)
        warnings.warn(
            f"reward '{self.functions[index].name}' cannot be sent to a worker process ({why}): it runs inside "
            "the trainer, where a hang cannot be killed. Put it in a file of its own: file.py:function",
            stacklevel=2,
        )

    def _receive(self, lane: Lane, batch: Batch) -> None:
        try:
            reply = json.loads(lane.connection.recv_bytes())
        except (EOFError, OSError):
            self._end(lane)
            self._died(lane, batch)
            return
        if not lane.ready:
            lane.ready, self._lost_starts = True, 0
            self._not_loaded(reply["failed"])
        elif "listening" in reply:
            self._give(lane, self._suited(batch.together, lane.in_process), batch, joint=True)
            lane.offered = False
        else:
            self._settle(lane.units.pop(reply["unit"]), reply, batch)
            self._be_patient(lane)

    def _settle(self, unit: Unit, reply: Mapping[str, Any], batch: Batch) -> None:
        if "timeout" in reply:
            batch.fail(unit, "timeouts", self._too_long())
        elif "error" in reply:
            batch.fail(unit, "errors", reply["error"])
        else:
            batch.accept(unit, reply)

    def _lose(self, lane: Lane, kind: str, why: str, batch: Batch) -> None:
        """None of a lane's units will be answered. Only where it is a single one is the fault known to be its own."""
        units, lane.units = list(lane.units.values()), {}
        if len(units) == 1:
            batch.fail(units[0], kind, why)
        else:
            batch.again(units)

    def _died(self, lane: Lane, batch: Batch) -> None:
        if lane.ready:
            self._lose(lane, "errors", f"the process it ran in ended ({lane.fate})", batch)
            return
        self._lost_starts += 1
        if self._lost_starts >= START_TRIES:
            raise UserError(
                f"rewards: a worker process ended ({lane.fate}) while it loaded {self._sources()}; "
                "what it printed stands above"
            )

    def _expire(self, lane: Lane, batch: Batch) -> None:
        self._end(lane)
        if not lane.ready:
            raise UserError(
                f"rewards: a worker process did not load {self._sources()} in {START_SECONDS:g} s"
            )
        still = "; it cannot be killed and goes on in the background" if lane.in_process else ""
        self._lose(lane, "timeouts", self._too_long() + still, batch)

    def _too_long(self) -> str:
        return f"took longer than reward_timeout, {self.timeout:g} s"

    def _not_loaded(self, failed: Mapping[str, str]) -> None:
        """A worker is ready but could not load all functions: an object stays here, a file is at fault."""
        for index, why in ((int(i), why) for i, why in failed.items()):
            reward = self.functions[index]
            if reward.spec:
                raise UserError(f"rewards: a worker process cannot load '{reward.spec}': {why}")
            if index not in self.stays:
                self._keep_here(index, why)

    def _sources(self) -> str:
        return ", ".join(reward.spec or reward.name for reward in self.functions)

    def _end(self, lane: Lane) -> None:
        self.lanes.remove(lane)
        lane.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
