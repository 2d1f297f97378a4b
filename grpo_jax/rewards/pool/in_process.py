"""Reward functions that run in this process, on the caller's thread.

Each is called once for all rows of a batch, as in TRL: what it appends to a list is there for the script, and so is
what it counts or opens. In return nothing limits its time, and a crash ends the run.
"""

import asyncio
import inspect
import json
import math
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.rewards.load import Reward
from grpo_jax.rewards.pool.batch import RewardBatch, Unit
from grpo_jax.rewards.pool.replies import Call, failed


class InProcess:
    """Calls those of the `functions` whose rows a batch keeps for this process."""

    def __init__(self, functions: Sequence[Reward]):
        self.functions = functions
        self._loop = LoopThread()

    def score(self, batch: RewardBatch) -> None:
        """Score the rows. A function that fails is called again row by row, so that only bad rows lose their scores.

        Raises:
            UserError: a function failed, and that stops the run.
        """
        units = batch.units_in_process()
        while units:
            for unit, reply in zip(units, self._replies(batch, units)):
                self._settle(batch, unit, reply)
            units = batch.units_in_process()

    def close(self) -> None:
        """End the event loop of async functions; the next one makes another."""
        self._loop.close()

    def _settle(self, batch: RewardBatch, unit: Unit, reply: dict[str, Any]) -> None:
        if "error" not in reply:
            batch.accept(unit, reply)
        elif batch.stop:
            raise UserError(
                f"rewards: '{batch.names[unit.function]}' failed: {reply['error']}\n"
                "fix the function, or set on_reward_error to count"
            )
        else:
            batch.fail(unit, "errors", reply["error"])

    def _replies(self, batch: RewardBatch, units: Sequence[Unit]) -> list[dict[str, Any]]:
        """The reply for each unit, as a worker would give it. Async functions are awaited together, after the plain
        ones."""
        begun = [self._begin(batch, unit) for unit in units]
        awaited = iter(self._loop.run([each for each in begun if not isinstance(each, bytes)]))
        return [json.loads(each if isinstance(each, bytes) else next(awaited)) for each in begun]

    def _begin(self, batch: RewardBatch, unit: Unit) -> bytes | Coroutine[Any, Any, bytes]:
        call, function = Call(unit.function), self.functions[unit.function].function
        try:
            result = call.begin(function, batch.arguments(unit), batch.trainer_state, math.inf)
            return _finish(call, result) if inspect.isawaitable(result) else call.reply(result)
        except Exception as fault:
            return failed(unit.function, fault)


async def _finish(call: Call, result: Any) -> bytes:
    try:
        return call.reply(await result)
    except Exception as fault:
        return failed(call.unit, fault)


class LoopThread:
    """An event loop on a thread of its own, one for all calls: connections that a function keeps belong to a loop, and
    the caller's thread may have one that runs, as in a notebook."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutines: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
        """Await all of them together."""
        if not coroutines:
            return []
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_together(coroutines), self._loop).result()

    def close(self) -> None:
        """End the thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


async def _together(coroutines: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    return await asyncio.gather(*coroutines)
