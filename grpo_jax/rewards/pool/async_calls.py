"""Async rewards: a worker awaits the units of a request concurrently, and those of requests that come meanwhile.

A worker has one event loop for all its calls, as in TRL, because a connection that a function keeps from one call to
the next belongs to a loop.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from grpo_jax.rewards.pool.replies import Call, failed, timed_out

Waiting = tuple[Call, Awaitable[Any]]


class Loop:
    """Awaits results and sends a reply for each as it comes; cancels those that take more than `timeout` seconds.

    Args:
        connection: to the trainer, for replies and further requests.
        more: reads a request from the connection and begins its units.
    """

    def __init__(self, connection: Connection, timeout: float, more: Callable[[], Iterable[Waiting]]):
        self.connection, self.timeout, self.more = connection, timeout, more
        self.send = connection.send_bytes
        self.tasks: set[asyncio.Task[None]] = set()
        self.runner = asyncio.Runner()

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def run(self, waiting: Iterable[Waiting]) -> None:
        """Return when every call has been answered, or when the connection has ended."""
        with contextlib.suppress(asyncio.CancelledError):
            self.runner.run(self._all(waiting))

    async def _all(self, waiting: Iterable[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        self._start(waiting)
        loop.add_reader(self.connection.fileno(), self._join, asyncio.current_task())
        try:
            while self.tasks:
                done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_EXCEPTION)
                self.tasks -= done
                for task in done:
                    task.result()
        finally:
            loop.remove_reader(self.connection.fileno())

    def _start(self, waiting: Iterable[Waiting]) -> None:
        self.tasks |= {asyncio.ensure_future(self._one(call, result)) for call, result in waiting}

    def _join(self, main: asyncio.Task[Any] | None) -> None:
        """Read more units, or the end of the connection (which the server then reads again)."""
        try:
            self._start(self.more())
        except (EOFError, OSError):
            assert main is not None
            main.cancel()

    async def _one(self, call: Call, result: Awaitable[Any]) -> None:
        try:
            await asyncio.wait_for(self._finish(call, result), self.timeout)
        except TimeoutError:
            self.send(timed_out(call.unit))
        except asyncio.CancelledError as fault:
            if _being_cancelled():  # the loop is closing, so this unit is not at fault
                raise
            self.send(failed(call.unit, fault))

    async def _finish(self, call: Call, result: Awaitable[Any]) -> None:
        """Await the result and answer at once: functions that never yield to the loop are answered one by one."""
        try:
            reply = call.reply(await result)
        except asyncio.CancelledError:
            raise
        except BaseException as fault:  # including a TimeoutError that the function itself raises
            reply = failed(call.unit, fault)
        self.send(reply)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
