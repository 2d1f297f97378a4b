"""Runs reward functions on a step's completions, in processes, each call under a deadline.

A unit of work is one function on one prompt's group of rows. Units of plain functions go one by one to whichever
worker is free; those of async functions all go to one worker, where they wait side by side.

A unit that fails (raises, takes too long, returns a wrong number of scores, takes its process down) is tried
once more row by row, so that a bad row costs only itself; rows that fail again score NaN and are counted. A
process that passes its deadline is killed with all it started, and replaced; an async function that waits too
long is only cancelled. A group that hangs on every row thus costs 1 + G deadlines, shared by the workers.
"""

import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, Literal

from grpo_jax.errors import UserError
from grpo_jax.rewards.batch import Batch, Job, Scores, Unit
from grpo_jax.rewards.lanes import Lane, ProcessLane, ThreadLane
from grpo_jax.rewards.load import Reward, is_async, load_reward, parameters
from grpo_jax.rewards.logs import ALWAYS
from grpo_jax.rewards.packing import Packed, pack

START_SECONDS = 300.0
"""Longest start of a worker, most of it the imports of the user's file."""
START_TRIES = 3
"""Workers in a row that may end before they are ready (the system may kill one, for want of memory)."""
GRACE_SECONDS = 1.0
"""What a worker gets beyond the deadline to give up an async function that waits, before it is killed itself."""
CLOSE_SECONDS = 1.0
"""What idle workers get to end on their own (flush files, run their exit handlers) before they are killed."""


class RewardPool:
    """Worker processes for a list of rewards; started at the first `score`, ended by `close` (or `with`).

    Args:
        functions: rewards, or anything that `load_reward` takes. Their names must differ.
        workers: most processes at a time; 0 means the number of cores, at most 8.
        timeout: seconds a unit may take, from when a worker begins with it. An async function begins with all
            groups at once: it must have answered the last of them within this time.
        on_error: "count" scores a failing row NaN; "stop" raises `UserError` and names the row.

    `messages` keeps by function and kind of fault ("errors", "timeouts", "nans") the first sentence seen.
    A function given as an object that cannot be pickled runs in a thread of this process, with a warning.
    """

    def __init__(
        self,
        functions: Iterable[Any],
        *,
        workers: int = 0,
        timeout: float = 10.0,
        on_error: Literal["count", "stop"] = "count",
    ):
        self.functions: list[Reward] = [load_reward(f) for f in functions]
        self.names = [f.name for f in self.functions]
        double = {name for name in self.names if self.names.count(name) > 1}
        if double:
            raise UserError(f"rewards: two functions are called '{min(double)}'; give one another __name__")
        self.workers = workers or min(_cores(), 8)
        self.timeout = timeout
        self.on_error = on_error
        self.messages: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self._patient = {i for i, reward in enumerate(self.functions) if is_async(reward.function)}
        self._lanes: list[Lane] = []
        self._packed: list[Packed] = []
        self._stays: set[int] = set()  # indices of functions that cannot leave this process
        self._lost_starts = 0  # workers in a row that ended before they were ready

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; a later `score` would start new ones."""
        lanes, self._lanes = self._lanes, []
        until = time.monotonic() + CLOSE_SECONDS
        for lane in lanes:
            lane.connection.close()  # tell all before waiting for any
        for lane in lanes:
            lane.end(patience=max(until - time.monotonic(), 0.0) if lane.idle else 0.0)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Any] | None = None,
        trainer_state: Any = None,
    ) -> Scores:
        """Score B rows with every function. All lists have B entries; a group is a run of equal prompts.

        Args:
            trainer_state: any object that can be pickled; the functions get a copy. See `logs.py`.

        Raises:
            UserError: a function needs a column that is not there, cannot be loaded by a worker, or
                (on_error="stop") failed on a row.
            ValueError: the lengths differ.
        """
        data = {**(columns or {}), "prompts": prompts, "completions": completions}
        if completion_ids is not None:
            data["completion_ids"] = completion_ids
        wrong = {name: len(column) for name, column in data.items() if len(column) != len(completions)}
        if wrong:
            raise ValueError(f"{len(completions)} completions, but these lengths differ: {wrong}")
        self.check_columns(data)
        stop = self.on_error == "stop"
        batch = Batch(self.names, data, self.messages, stop, self._patient, trainer_state)
        try:
            while batch.waiting or any(lane.units for lane in self._lanes):
                self._dispatch(batch)
                self._collect(batch)
        finally:  # after an error or Ctrl-C: a late answer must not be taken for one of the next call
            for lane in [lane for lane in self._lanes if lane.units]:
                self._end(lane)
        return batch.finished()

    def check_columns(self, names: Iterable[str]) -> None:
        """UserError when a function needs an argument that is not among `names`."""
        given = set(names)
        for reward in self.functions:
            missing = parameters(reward.function)[0] - given - ALWAYS
            if missing:
                has = ", ".join(sorted(given))
                raise UserError(f"rewards: '{reward.name}' needs a column '{min(missing)}'; there are {has}")

    def _dispatch(self, batch: Batch) -> None:
        """Give every idle lane a job that it can do; start lanes while there is work for more."""
        self._start_lanes(batch)
        for lane in [lane for lane in self._lanes if lane.idle]:
            job = next((job for job in batch.waiting if self._stays_here(job) == lane.in_process), None)
            if job is None:
                continue
            request = batch.request(job, lane.state)
            try:
                lane.connection.send_bytes(request)
            except OSError:  # it ended while idle, through no fault of this job
                self._end(lane)
                continue
            batch.waiting.remove(job)
            lane.units, lane.state = dict(enumerate(job)), batch.state
            lane.deadline = self._deadline(job)

    def _stays_here(self, job: Job) -> bool:
        return any(unit.function in self._stays for unit in job)

    def _deadline(self, units: Iterable[Unit]) -> float:
        """When a lane must have answered one more of these units."""
        patient = any(unit.function in self._patient for unit in units)
        return time.monotonic() + self.timeout + GRACE_SECONDS * patient

    def _start_lanes(self, batch: Batch) -> None:
        if not self._packed:
            self._packed = [pack(reward) for reward in self.functions]
            for index, (kind, why) in enumerate(self._packed):
                if kind == "absent":
                    self._keep_here(index, why)
        here = sum(self._stays_here(job) for job in batch.waiting)
        processes = [lane for lane in self._lanes if not lane.in_process]
        free = sum(not lane.units for lane in processes)
        for _ in range(min(len(batch.waiting) - here - free, self.workers - len(processes))):
            self._lanes.append(ProcessLane(self._packed, self.timeout, time.monotonic() + START_SECONDS))
        if here and not any(lane.in_process for lane in self._lanes):
            self._lanes.append(ThreadLane([reward.function for reward in self.functions], self.timeout))

    def _keep_here(self, index: int, why: str) -> None:
        self._stays.add(index)
        warnings.warn(
            f"reward '{self.names[index]}' cannot be sent to a worker process ({why}): it runs inside the "
            "trainer, where a hang cannot be killed. Put it in a file of its own: file.py:function",
            stacklevel=2,
        )

    def _collect(self, batch: Batch) -> None:
        """Wait for the next answer, end or deadline among the lanes that owe one, and act on it."""
        owing = [lane for lane in self._lanes if not lane.idle]
        if not owing:
            return
        patience = max(min(lane.deadline for lane in owing) - time.monotonic(), 0.0)
        answered = wait([lane.connection for lane in owing], patience)
        for lane in owing:
            if lane.connection in answered:
                self._receive(lane, batch)
            elif time.monotonic() >= lane.deadline:
                self._expire(lane, batch)

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
            return
        if reply["unit"] is None:
            self._lose(lane, "errors", reply["error"], batch)
            return
        self._settle(lane.units.pop(reply["unit"]), reply, batch)
        lane.deadline = self._deadline(lane.units.values())

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
            if index not in self._stays:
                self._keep_here(index, why)

    def _sources(self) -> str:
        return ", ".join(reward.spec or reward.name for reward in self.functions)

    def _end(self, lane: Lane) -> None:
        self._lanes.remove(lane)
        lane.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
