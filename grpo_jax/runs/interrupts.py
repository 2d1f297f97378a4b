"""Ctrl-C while steps are under way: once to stop after the step, twice to stop now."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

PATIENCE = 5.0
"""Seconds after the second Ctrl-C that a program on the devices, or a compiler, has to return."""
INTERRUPTED = 128 + signal.SIGINT


class Interrupts:
    """A context in which the first Ctrl-C only sets `asked`, and the second raises KeyboardInterrupt.

    Python runs signal handlers between its own instructions, and counts two signals as one while the main thread is in
    a compiler for minutes. So a thread reads them from the file that C's handler writes to: it answers at once, and
    ends the process if the main thread does not come back. Outside the main thread, or where Ctrl-C is ignored (a
    background job of a shell), nothing changes.

    Args:
        say: prints a line. first, second: what to say.
        end: ends the process with an exit status; None in an interactive session: nothing does.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        first: str,
        second: str = "stopping now",
        patience: float = PATIENCE,
        end: Callable[[int], Any] | None = None,
    ):
        self._say, self._first, self._second, self._patience = say, first, second, patience
        self._end = end or (None if _interactive() else _end)
        self._open = ExitStack()
        self.asked = False
        self._now, self._left = False, threading.Event()

    def __enter__(self) -> "Interrupts":
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        ):
            self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, *fault: Any) -> None:
        self._open.close()
        if self.asked and kind is None:  # it came after the last step
            raise KeyboardInterrupt

    def _listen(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)  # as `set_wakeup_fd` needs
        thread = threading.Thread(target=self._answer, args=(ours,), name="interrupts", daemon=True)
        thread.start()
        self._open.callback(ours.close)
        self._open.callback(thread.join)
        self._open.callback(theirs.close)  # which ends the thread
        self._open.callback(
            signal.set_wakeup_fd, signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        )
        self._open.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._handle))
        self._open.callback(self._left.set)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._now:
            self._now = False
            raise KeyboardInterrupt

    def _answer(self, signals: socket.socket) -> None:
        """Answer every Ctrl-C, until the other end is closed."""
        if not _next_interrupt(signals):
            return
        self.asked = True
        self._say(self._first)
        if not _next_interrupt(signals):
            return
        self._now = True
        self._say(self._second)
        patience = time.monotonic() + self._patience
        while not self._left.wait(0.05):
            # The handler of the second signal may have run before `_now` was set; and one that comes just before the
            # main thread begins to wait for a lock does not wake it.
            if self._now:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if self._end and time.monotonic() > patience:
                self._end(INTERRUPTED)
                return


def _next_interrupt(signals: socket.socket) -> bool:
    """Wait for a SIGINT among the signals; False: there will be none."""
    while number := signals.recv(1):
        if number[0] == signal.SIGINT:
            return True
    return False


def _end(status: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("\x1b[?25h\n" if sys.stderr.isatty() else "")  # the cursor that a bar has hidden
        sys.stderr.flush()
    os._exit(status)


def _interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
