"""The worker process: reads units of work, calls the reward functions, writes the scores back.

`worker_handle.WorkerProcess` starts it as a fresh interpreter, without the trainer's threads, devices or `__main__`.
It communicates over its own socket, so what a reward prints goes to the trainer's stderr. Requests are pickled
(columns may hold anything); replies are JSON, see `replies.py`.
"""

import contextlib
import functools
import inspect
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from grpo_jax.rewards.pool.replies import LISTENING, OFFER, Call, failed
from grpo_jax.rewards.pool.serialize import unpack

if TYPE_CHECKING:
    from grpo_jax.rewards.pool.async_calls import Loop, Waiting


class RewardServer:
    """Answers requests: (pickled trainer state, or None if it has not changed; units as [(number, pickled unit)]).

    Each unit is answered separately, as soon as it is done.

    Args:
        functions: by index; None for one that could not be loaded in this process.
        timeout: seconds that an async function may take. (The worker pool kills the process of a plain one.)
    """

    def __init__(
        self, connection: Connection, functions: Sequence[Callable[..., Any] | None], timeout: float
    ):
        self.connection, self.functions, self.timeout = connection, functions, timeout
        self.state: Any = None
        self.open = contextlib.ExitStack()

    def serve(self) -> None:
        """Answer requests until the connection ends."""
        with self.open, contextlib.suppress(EOFError, OSError):
            while True:
                if waiting := self.begin(self.receive()):
                    self.loop.run(waiting)

    def receive(self) -> bytes:
        """The next request. Accepts the offer that may precede it."""
        message = self.connection.recv_bytes()
        if message == OFFER:
            self.connection.send_bytes(LISTENING)
            message = self.connection.recv_bytes()
        return message

    def begin(self, request: bytes) -> "list[Waiting]":
        """Call the function of each unit, in order, and answer. Returns the calls whose results must be awaited."""
        state, units = pickle.loads(request)
        try:
            if state is not None:
                self.state = None  # so that no old state stays if the next line fails
                self.state = pickle.loads(state)
        except BaseException as fault:
            for number, _ in units:
                self.connection.send_bytes(failed(number, fault))
            return []
        begun = [self._answer(number, unit) for number, unit in units]
        return [waiting for waiting in begun if waiting]

    def _answer(self, number: int, unit: bytes) -> "Waiting | None":
        """Send the result of the unit's function, or return it if it must be awaited."""
        call = Call(number)
        try:
            result = self._begin(call, unit)
            if inspect.isawaitable(result):
                return call, result
            reply = call.reply(result)
        except (
            BaseException
        ) as fault:  # SystemExit, and timeouts that do not derive from Exception, count too
            reply = failed(number, fault)
        self.connection.send_bytes(reply)
        return None

    def _begin(self, call: Call, unit: bytes) -> Any:
        """Call the function with the arguments that it accepts."""
        index, arguments = pickle.loads(unit)
        function = self.functions[index]
        assert function is not None, "a function that did not load was asked for"
        return call.begin(function, arguments, self.state, self.timeout)

    @functools.cached_property
    def loop(self) -> "Loop":
        """The event loop, made at the first async function: plain ones need no asyncio."""
        from grpo_jax.rewards.pool.async_calls import Loop

        more = lambda: self.begin(self.receive())
        return self.open.enter_context(Loop(self.connection, self.timeout, more))


def die_with(parent: int) -> None:
    """End this process when the trainer ends, even while a reward hangs. (An idle worker reads the end of its socket.)

    Linux only: elsewhere a hanging reward outlives a trainer that was killed. The kernel sends the signal when the
    thread that started this process ends; the worker pool replaces a worker that is lost this way.
    """
    if sys.platform.startswith("linux"):
        import ctypes
        import signal

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # the trainer died before the line above
        os._exit(1)


def main(descriptor: int, parent: int) -> None:
    """Run the worker: `descriptor` is its end of the socket, `parent` the trainer's process id."""
    die_with(parent)
    os.set_inheritable(descriptor, False)  # a program started by a reward must not keep the socket open
    connection = Connection(descriptor)
    setup = pickle.loads(connection.recv_bytes())
    sys.path[:] = setup["path"]
    functions, not_loaded = unpack(setup["functions"])
    connection.send_bytes(json.dumps({"failed": not_loaded}).encode())
    RewardServer(connection, functions, setup["timeout"]).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
