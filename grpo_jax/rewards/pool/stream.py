"""Rows that are scored while the caller is busy with something else, and the thread that sees to it.

The caller's thread only puts rows into a stream's inbox and waits for its end; batch and workers belong to the
driver's thread. Whatever goes wrong there is raised in the caller's, at its next `add` or at `finish`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from queue import SimpleQueue
from typing import Any

from grpo_jax.rewards.pool.batch import Batch, Scores
from grpo_jax.rewards.pool.wakeup import Bell
from grpo_jax.rewards.pool.workers import Crew

Columns = dict[str, list[Any]]


class Stream:
    """B rows on their way to `Scores`; made by `RewardPool.stream`. Leaving its `with` early gives up what is left.

    The result does not depend on when, in which order or in which portions rows are added.
    """

    def __init__(self, batch: Batch, check: Callable[[Iterable[str]], None], wake: Callable[[], None]):
        self._batch, self._check, self._wake = batch, check, wake
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
        """Rows `first`, `first` + 1, ..., for which the work may begin. Takes no time.

        A group, which a function gets at a time, is a run of equal prompts within one `add`: what is added
        apart is never put together. `idle` functions (indices) are not asked about these rows.

        Raises:
            UserError: a function needs a column that is not there, or something has gone wrong with earlier rows.
            ValueError: lengths differ, rows were added before or lie beyond the last, or other columns came before.
        """
        data = {**(columns or {}), "prompts": prompts, "completions": completions}
        if completion_ids is not None:
            data["completion_ids"] = completion_ids
        self._raise_fault()
        self._register(first, data)
        self._inbox.append((first, {name: list(column) for name, column in data.items()}, idle))
        self._wake()

    def finish(self) -> Scores:
        """Wait for all rows.

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
        return self._batch.finished()

    def cancel(self) -> None:
        """Give up what is not finished; on return nobody works for this stream any more."""
        if not self._done.is_set():
            self._cancelled = True
            self._wake()
            self._done.wait()

    def _register(self, first: int, data: Mapping[str, Sequence[Any]]) -> None:
        """These rows come now, and no other time."""
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

    def drive(self, crew: Crew, bell: Bell) -> None:
        """All the work, on the driver's thread. A fault is kept for the caller's."""
        try:
            try:
                while self._goes_on(crew):
                    crew.dispatch(self._batch)
                    crew.collect(self._batch, bell)
            finally:
                crew.interrupt()
        except BaseException as fault:
            self._fault = fault

    def end(self) -> None:
        """The driver works for it no more."""
        self._done.set()

    def _goes_on(self, crew: Crew) -> bool:
        """Take what was added; whether there is anything to do or to wait for."""
        while self._inbox:
            added = self._inbox.popleft()
            if added is None:
                self._complete = True
            else:
                self._batch.add(*added)
        left = crew.busy or self._batch.waiting or self._batch.together
        return not self._cancelled and bool(left or not self._complete)


class Driver:
    """The thread that works for streams, one after another.

    It lives longer than any of them because worker processes die with the thread that started them.
    """

    def __init__(self, crew: Crew):
        self.crew, self.bell = crew, Bell()
        self._streams: SimpleQueue[Stream | None] = SimpleQueue()
        self._stream: Stream | None = None  # that is worked for
        self._thread: threading.Thread | None = None

    def begin(self, stream: Stream) -> Stream:
        """Work for this stream from now on. RuntimeError while another is open."""
        if self._stream:
            raise RuntimeError("another stream of rewards is open: finish or cancel it first")
        self.crew.pack()
        if not self._thread:
            self._thread = threading.Thread(target=self._serve, name="rewards", daemon=True)
            self._thread.start()
        self._stream = stream
        self._streams.put(stream)
        return stream

    def close(self) -> None:
        """End the thread and all workers; both can be started anew."""
        if stream := self._stream:
            stream.cancel()
        if thread := self._thread:
            self._thread = None
            self._streams.put(None)
            if (
                thread is not threading.current_thread()
            ):  # there, a forgotten pool may be collected as anywhere
                thread.join()
        self.crew.close()

    def _serve(self) -> None:
        while stream := self._streams.get():
            stream.drive(self.crew, self.bell)
            self._stream = None
            stream.end()
            del stream  # nothing of its rows is kept
