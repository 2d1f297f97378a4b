"""Where rewards run, one job at a time: a process that can be killed, or (second best) a thread.

Both speak the protocol of `worker.py` over a `Connection`, so the pool need not know which is which.
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
"""Longest wait for a peer in the middle of a message; a healthy one needs microseconds."""


class Lane:
    """A place that runs one job at a time: a single unit, or units that wait side by side and may be joined by more.

    The fields are the crew's business: `units` are those not answered yet, by number; `joint` whether they wait
    side by side; `offered` whether an offer of more is not answered yet; `ready` whether the functions are loaded;
    `deadline` when (time.monotonic) the patience with it ends; `state` the trainer's state that it knows, as sent.
    """

    connection: Connection
    in_process = False
    fate = "unknown"  # how it ended, in words

    def __init__(self, ready: bool, deadline: float):
        self.units: dict[int, Unit] = {}
        self.numbers = itertools.count()
        self.joint = self.offered = False
        self.state: bytes | None = None
        self.ready = ready
        self.deadline = deadline

    @property
    def busy(self) -> bool:
        """Whether it has to answer something."""
        return bool(self.units) or self.offered

    @property
    def idle(self) -> bool:
        return self.ready and not self.busy

    def end(self, patience: float = 0.0) -> None:
        """Stop; wait `patience` seconds for a clean end before using force."""
        raise NotImplementedError


class ProcessLane(Lane):
    """A fresh interpreter in a session of its own, so that it dies together with whatever it has started."""

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
        with contextlib.suppress(OSError):  # it died at once: the pool reads the socket's end and says so
            setup = {"path": sys.path, "functions": functions, "timeout": timeout}
            self.connection.send_bytes(pickle.dumps(setup))

    def end(self, patience: float = 0.0) -> None:
        self.connection.close()
        if patience:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # No such group: all of it has ended. Not permitted: macOS, for a group that is only zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        code = self.process.returncode
        self.fate = f"signal {-code}" if code < 0 else f"exit status {code}"


class ThreadLane(Lane):
    """A thread of the trainer, for functions that cannot be sent to another process.

    It cannot be killed: one that passes its deadline is left alone, and a new thread takes over.
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
        worker.Server(connection, functions, timeout).serve()


def _environment() -> dict[str, str]:
    """The trainer's, but: this package can be imported, jax stays on the CPU, prints appear at once."""
    root = str(Path(grpo_jax.__file__).absolute().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
