"""Async rewards: the units of one request wait side by side, and all of a worker's on one event loop.

One loop for all calls, as TRL has: a connection that a function keeps from one call to the next belongs to a loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from grpo_jax.rewards.replies import Call, failed, timed_out

Waiting = tuple[Call, Awaitable[Any]]


class Loop:
    """Awaits results and sends a reply for each as it comes; cancels those that take more than `timeout` seconds."""

    def __init__(self, send: Callable[[bytes], None], timeout: float):
        self.send, self.timeout = send, timeout
        self.runner = asyncio.Runner()

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def run(self, waiting: Sequence[Waiting]) -> None:
        """Return when each has been answered."""
        self.runner.run(self._all(waiting))

    async def _all(self, waiting: Sequence[Waiting]) -> None:
        await asyncio.gather(*(self._one(call, result) for call, result in waiting))

    async def _one(self, call: Call, result: Awaitable[Any]) -> None:
        try:
            await asyncio.wait_for(self._finish(call, result), self.timeout)
        except TimeoutError:
            self.send(timed_out(call.unit))
        except asyncio.CancelledError as fault:
            if _being_cancelled():  # the loop is closing: this unit has done nothing wrong
                raise
            self.send(failed(call.unit, fault))

    async def _finish(self, call: Call, result: Awaitable[Any]) -> None:
        """Answers in here, so that functions which never really wait are heard of one by one."""
        try:
            reply = call.reply(await result)
        except asyncio.CancelledError:
            raise
        except BaseException as fault:  # among them a TimeoutError of the function's own
            reply = failed(call.unit, fault)
        self.send(reply)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
