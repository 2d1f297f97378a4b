"""The limits of a program, and the outcome of running it."""

from dataclasses import dataclass
from typing import Literal

MIB = 2**20

Ended = Literal["exit", "signal", "cpu", "wall", "memory", "output"]
"""What ended a program: its own exit, a signal, or a limit on its seconds (`cpu`, `wall`), memory or output."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    cpu: seconds of processor time, summed over its threads.
    wall: seconds of wall-clock time, its start included; None: 2 * cpu + 2.
    memory: bytes of address space per process.
    processes: the most processes at a time. With 1 and seccomp it cannot start any.
    threads: the most threads at a time, of all processes together.
    files: bytes of all its files together if it has a file system of its own; otherwise bytes of each file.
    open_files: the most open file descriptors.
    output: bytes of stdout, and of stderr.
    """

    cpu: float = 4.0
    wall: float | None = None
    memory: int = 512 * MIB
    processes: int = 1
    threads: int = 32
    files: int = 16 * MIB
    open_files: int = 64
    output: int = 8 * MIB

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value is not None and not value > 0]
        if wrong:
            raise ValueError(f"{wrong[0]} = {getattr(self, wrong[0])}: a limit must be above 0")

    @property
    def patience(self) -> float:
        """The limit on wall-clock time, in seconds."""
        return 2 * self.cpu + 2 if self.wall is None else self.wall


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a program printed and how it ended.

    stdout, stderr: what it printed, up to the limit; bytes that are not UTF-8 become U+FFFD.
    exit_code: None if a signal ended it.
    signal: the number of the signal that ended it; None if it exited.
    ended: what ended it. `memory` is a guess: it failed, and the last thing it printed was a MemoryError.
    seconds: wall-clock time, with the start of its interpreter.
    walls: the walls around it (see `protections.py`); empty if unknown.
    """

    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    ended: Ended
    seconds: float
    walls: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.ended == "exit"


class SandboxError(Exception):
    """The sandbox failed. This says nothing about the program."""
