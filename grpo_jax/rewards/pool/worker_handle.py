"""Handles of the workers that run rewards: a process, which can be killed, or a thread, which cannot.

Both speak the protocol of `worker.py` over a `Connection`, so the worker pool treats them alike.
"""

import contextlib
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpo_jax
from grpo_jax.rewards.pool import worker
from grpo_jax.rewards.pool.batch import Unit
from grpo_jax.rewards.pool.serialize import Packed

STALL_SECONDS = 60
"""Longest wait for a worker in the middle of a message; a healthy one needs microseconds."""


class WorkerHandle:
    """One worker. It runs a single unit at a time, or several units of async functions, which more may join.

    The worker pool sets the fields:
        units: the units that it has not answered yet, by number.
        joint: whether they are of async functions, and run concurrently.
        offered: whether it has not answered yet an offer of more async units.
        ready: whether it has loaded the functions.
        deadline: the time (time.monotonic) by which it must answer, or load the functions.
        state: the pickled trainer state that was last sent to it; None before the first request.
    """

    connection: Connection
    in_process = False
    exit_reason = "unknown"  # for messages, once it has ended

    def __init__(self, ready: bool, deadline: float):
        self.units: dict[int, Unit] = {}
        self.numbers = itertools.count()
        self.joint = self.offered = False
        self.state: bytes | None = None
        self.ready = ready
        self.deadline = deadline

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self.units) or self.offered

    @property
    def idle(self) -> bool:
        return self.ready and not self.busy

    def end(self, patience: float = 0.0) -> None:
        """Stop the worker: wait `patience` seconds for it to exit by itself, then kill it."""
        raise NotImplementedError


class WorkerProcess(WorkerHandle):
    """A fresh interpreter in its own session, so that it can be killed together with the processes it started."""

    def __init__(self, functions: Sequence[Packed], timeout: float, deadline: float):
        super().__init__(ready=False, deadline=deadline)
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "grpo_jax.rewards.pool.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a reward's print() must not mix with what the command prints on stdout
                start_new_session=True,
                env=_environment(),
            )
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STALL_SECONDS, 0))
        self.connection = Connection(ours.detach())
        with contextlib.suppress(
            OSError
        ):  # it died at once: the worker pool reads the socket's end and reports it
            setup = {"path": sys.path, "functions": functions, "timeout": timeout}
            self.connection.send_bytes(pickle.dumps(setup))

    def end(self, patience: float = 0.0) -> None:
        self.connection.close()
        if patience:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # ProcessLookupError: the whole group has ended. PermissionError: on macOS, the group is only zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        code = self.process.returncode
        self.exit_reason = f"signal {-code}" if code < 0 else f"exit status {code}"


class WorkerThread(WorkerHandle):
    """A thread of the trainer's process, for functions that cannot be pickled.

    It cannot be killed: when it passes its deadline it is abandoned, and a new thread takes over.
    """

    in_process = True

    def __init__(self, functions: Sequence[Callable[..., Any]], timeout: float):
        super().__init__(ready=True, deadline=float("inf"))
        self.connection, theirs = Pipe()
        threading.Thread(target=_serve, args=(theirs, functions, timeout), name="reward", daemon=True).start()

    def end(self, patience: float = 0.0) -> None:
        self.connection.close()


def _serve(connection: Connection, functions: Sequence[Callable[..., Any]], timeout: float) -> None:
    with connection:
        worker.RewardServer(connection, functions, timeout).serve()


def _environment() -> dict[str, str]:
    """The trainer's environment, changed so that this package is found, jax uses the CPU and prints are unbuffered."""
    root = str(Path(grpo_jax.__file__).absolute().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
