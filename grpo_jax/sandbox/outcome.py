"""What a program may use, and what came of it."""

from dataclasses import dataclass
from typing import Literal

MIB = 2**20

Ended = Literal["exit", "signal", "cpu", "wall", "memory", "output"]
"""What ended a program: itself (`exit`), a signal, a limit on its seconds (`cpu`, `wall`), memory or output."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    cpu: seconds of processor time, of all its threads together.
    wall: seconds by the clock, its start included; None: twice the processor time and two more.
    memory: bytes of address space, a process. With one process, the default, that is all it can have.
    processes: processes it may have at a time. 1: it can start none, where seccomp is at work.
    threads: threads (of all processes) it may have at a time.
    files: bytes that all its files may hold, where it has a file system of its own; else that each of them may.
    open_files: descriptors.
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
        """Seconds by the clock."""
        return 2 * self.cpu + 2 if self.wall is None else self.wall


@dataclass(frozen=True)
class Outcome:
    """How a program fared.

    stdout, stderr: what it printed, up to the limit; bytes that are no UTF-8 are U+FFFD.
    exit_code: None where a signal ended it.
    signal: its number, or None.
    ended: what ended it. `memory` is a guess: it failed, and the last thing it printed was a MemoryError.
    seconds: by the clock, with the start of its interpreter.
    walls: the walls that stood around it (see `protections.py`); none where that is not known.
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
    """The sandbox could not do its work; it says nothing about the program."""
