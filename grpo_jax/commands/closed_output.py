"""A reader that goes away, as in `grpo-jax recipes | head -1`, ends a command quietly, as it ends `cat`.

SIGPIPE itself stays ignored, as Python has it: it would also end the program when a reward worker or a server
closes a connection.
"""

import os
import select
import sys

READER_LEFT = 128 + 13
"""The exit code: what a shell reports for a program that SIGPIPE has ended."""


def flush_output() -> None:
    """Write what stdout still buffers. BrokenPipeError if it is no longer read: at the interpreter's end it is too late
    to catch that."""
    print(end="", flush=True)  # unlike sys.stdout.flush(), also where there is no stdout at all


def reader_left(end: BaseException) -> bool:
    """Whether `end` was raised because the reader of stdout or stderr has gone, not that of another pipe."""
    if isinstance(end, SystemExit):  # rich's way: it discards the output itself and leaves with exit code 1
        return isinstance(end.__context__, BrokenPipeError)
    return bool(_without_reader())


def discard_output() -> None:
    """Send nowhere what is still buffered for a reader that has gone: the interpreter's end would fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _without_reader():
        os.dup2(nowhere, descriptor)


def _without_reader() -> list[int]:
    """The descriptors of stdout and stderr whose reader has gone."""
    poll = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream.fileno(), 0)  # no events asked for: errors are reported all the same
    return [descriptor for descriptor, _ in poll.poll(0)]
