"""Scoring in the background: a stream of rows, and the driver thread that has them scored.

The caller's thread only puts rows into a stream's inbox and waits for the stream to end; batch and workers belong to
the driver's thread. An error there is raised in the caller's thread, at its next `add` or at `finish`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from queue import SimpleQueue
from typing import Any

from grpo_jax.rewards.pool.batch import RewardBatch, Scores
from grpo_jax.rewards.pool.in_process import InProcess
from grpo_jax.rewards.pool.wakeup import WakeupPipe
from grpo_jax.rewards.pool.workers import WorkerPool

Columns = dict[str, list[Any]]


class Stream:
    """B rows that are being scored; made by `RewardPool.stream`. Leaving its `with` block early cancels the rest.

    The result does not depend on when, in which order or in which portions rows are added.
    """

    def __init__(
        self,
        batch: RewardBatch,
        check: Callable[[Iterable[str]], None],
        wake: Callable[[], None],
        in_process: InProcess,
    ):
        self._batch, self._check, self._wake, self._in_process = batch, check, wake, in_process
        self._missing = set(range(batch.rows))  # rows not added yet
        self._columns: frozenset[str] | None = None  # of the rows added so far
        self._inbox: deque[tuple[int, Columns, Set[int]] | None] = deque()  # None: no more will come
        self._complete = self._cancelled = False
        self._fault: BaseException | None = None
        self._done = threading.Event()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def add(
        self,
        first: int,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Any] | None = None,
        idle: Set[int] = frozenset(),
    ) -> None:
        """Add rows `first`, `first` + 1, ...; their scoring begins in the background. Returns at once.

        A function scores one group at a time: a run of equal prompts within one `add`. Rows of different calls are
        never in one group. The functions (indices) in `idle` do not score these rows.

        Raises:
            UserError: a function needs a missing column, or the scoring of earlier rows failed.
            ValueError: the lengths differ, a row was added before or is beyond the last, or the columns are not
                those of earlier rows.
        """
        data = {**(columns or {}), "prompts": prompts, "completions": completions}
        if completion_ids is not None:
            data["completion_ids"] = completion_ids
        self._raise_fault()
        self._register(first, data)
        self._inbox.append((first, {name: list(column) for name, column in data.items()}, idle))
        self._wake()

    def finish(self) -> Scores:
        """Wait for all rows, and score them with the functions that run in this process.

        Raises:
            UserError: as `RewardPool.score`.
            ValueError: some rows were never added.
        """
        self._raise_fault()
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {self._batch.rows} rows were not added")
        self._inbox.append(None)
        self._wake()
        self._done.wait()
        self._raise_fault()
        self._in_process.score(self._batch)
        return self._batch.finished()

    def cancel(self) -> None:
        """Cancel what is not finished. On return no worker works for this stream any more."""
        if not self._done.is_set():
            self._cancelled = True
            self._wake()
            self._done.wait()

    def _register(self, first: int, data: Mapping[str, Sequence[Any]]) -> None:
        """Check rows and columns, and record that these rows have been added."""
        count = len(data["completions"])
        wrong = {name: len(column) for name, column in data.items() if len(column) != count}
        if wrong:
            raise ValueError(f"{count} completions, but these lengths differ: {wrong}")
        if self._columns is None:
            self._check(data)
            self._columns = frozenset(data)
        if self._columns != data.keys():
            raise ValueError(f"rows with {sorted(data)} after rows with {sorted(self._columns)}")
        rows = set(range(first, first + count))
        if not rows <= self._missing:
            raise ValueError(f"rows {first} to {first + count - 1} of {self._batch.rows} are not all missing")
        self._missing -= rows

    def _raise_fault(self) -> None:
        if self._fault:
            self._done.wait()  # the next stream may be opened at once
            raise self._fault
        if self._cancelled:
            raise RuntimeError("this stream of rewards was cancelled")

    def drive(self, worker_pool: WorkerPool, wakeup: WakeupPipe) -> None:
        """Score all rows, on the driver's thread. An exception is stored, to be raised in the caller's thread."""
        try:
            try:
                while self._goes_on(worker_pool):
                    worker_pool.dispatch(self._batch)
                    worker_pool.collect(self._batch, wakeup)
            finally:
                worker_pool.interrupt()
        except BaseException as fault:
            self._fault = fault

    def end(self) -> None:
        """Let the callers that wait for this stream go on: the driver has finished it."""
        self._done.set()

    def _goes_on(self, worker_pool: WorkerPool) -> bool:
        """Move added rows from the inbox to the batch. Returns whether anything is left to do or to wait for."""
        while self._inbox:
            added = self._inbox.popleft()
            if added is None:
                self._complete = True
            else:
                self._batch.add(*added)
        left = worker_pool.busy or self._batch.waiting or self._batch.concurrent
        return not self._cancelled and bool(left or not self._complete)


class Driver:
    """The thread that scores streams, one after another.

    It outlives them because worker processes die with the thread that started them.
    """

    def __init__(self, worker_pool: WorkerPool):
        self.worker_pool, self.wakeup = worker_pool, WakeupPipe()
        self._streams: SimpleQueue[Stream | None] = SimpleQueue()
        self._stream: Stream | None = None  # the open one
        self._thread: threading.Thread | None = None

    def begin(self, stream: Stream) -> Stream:
        """Start to score this stream, and return it. Raises RuntimeError while another is open."""
        if self._stream:
            raise RuntimeError("another stream of rewards is open: finish or cancel it first")
        self.worker_pool.pack()
        if not self._thread:
            self._thread = threading.Thread(target=self._serve, name="rewards", daemon=True)
            self._thread.start()
        self._stream = stream
        self._streams.put(stream)
        return stream

    def close(self) -> None:
        """End the thread and all workers; `begin` starts them again."""
        if stream := self._stream:
            stream.cancel()
        if thread := self._thread:
            self._thread = None
            self._streams.put(None)
            # The garbage collector may close a forgotten pool on any thread, this one too.
            if thread is not threading.current_thread():
                thread.join()
        self.worker_pool.close()

    def _serve(self) -> None:
        while stream := self._streams.get():
            stream.drive(self.worker_pool, self.wakeup)
            self._stream = None
            stream.end()
            del stream  # frees its rows
