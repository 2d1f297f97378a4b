"""The process in which rewards run: read a unit of work, call the function, write the scores back.

Started by `lanes.ProcessLane` as a fresh interpreter: nothing of the trainer (its threads, its devices, its
`__main__`) is in here. Talks over a socket of its own: what a reward prints goes to the trainer's stderr.
Requests are pickled (columns may hold anything); replies are JSON, so that the trainer reads nothing but
numbers and sentences from a process that runs foreign code.
"""

import inspect
import json
import math
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from grpo_jax.rewards.load import describe, parameters
from grpo_jax.rewards.packing import unpack


def serve(connection: Connection, functions: Sequence[Callable[..., Any] | None]) -> None:
    """Answer requests until the other side goes away. Request: (index, keyword arguments)."""
    accepted = [parameters(f)[1] if f else None for f in functions]
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        reply = _answer(request, functions, accepted)
        try:
            connection.send_bytes(json.dumps(reply).encode())
        except OSError:
            return


def _answer(
    request: bytes, functions: Sequence[Callable[..., Any] | None], accepted: Sequence[set[str] | None]
) -> dict[str, Any]:
    """{"values": one entry a row, see `entry`} or {"error": sentence}."""
    try:
        index, arguments = pickle.loads(request)
        function, names = functions[index], accepted[index]
        assert function is not None, "a function that did not load was asked for"
        rows = len(arguments["completions"])
        if names is not None:
            arguments = {name: value for name, value in arguments.items() if name in names}
        return _check(_finish(function(**arguments)), rows)
    except BaseException as fault:  # SystemExit, and timeouts that derive from BaseException, are faults too
        return {"error": describe(fault)}


def _finish(result: Any) -> Any:
    """Await what an `async def` reward returned; anything else is already finished."""
    if not inspect.isawaitable(result):
        return result
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _check(result: Any, rows: int) -> dict[str, Any]:
    if isinstance(result, str | bytes | dict | set) or not hasattr(result, "__len__"):
        return {"error": f"returned {_kind(result)}, not a list of numbers"}
    if len(result) != rows:
        return {"error": f"returned {len(result)} scores for {rows} completions"}
    return {"values": [entry(score) for score in result]}


def entry(score: Any) -> float | str | None:
    """One row's score as JSON: a finite number; None; "nan" when not finite; else what is wrong with it."""
    if score is None:
        return None
    if isinstance(score, str | bytes):
        return f"returned {_kind(score)} where a number belongs"
    try:
        number = float(score)
    except Exception:
        return f"returned {_kind(score)} where a number belongs"
    return number if math.isfinite(number) else "nan"


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]


def die_with(parent: int) -> None:
    """End when the trainer ends, even while a reward hangs. (An idle worker reads the end of its socket.)

    Linux only; elsewhere a hanging reward outlives a trainer that was killed. The signal already comes when
    the thread that started this process ends; the pool replaces a worker that it has lost this way.
    """
    if sys.platform.startswith("linux"):
        import ctypes
        import signal

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def main(descriptor: int, parent: int) -> None:
    """Body of the process: `descriptor` is its end of the socket, `parent` the trainer's process id."""
    die_with(parent)
    os.set_inheritable(descriptor, False)  # a program started by a reward must not keep the socket open
    connection = Connection(descriptor)
    setup = pickle.loads(connection.recv_bytes())
    sys.path[:] = setup["path"]
    functions, failed = unpack(setup["functions"])
    connection.send_bytes(json.dumps({"failed": failed}).encode())
    serve(connection, functions)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
