"""Says on standard error what is being done, so that minutes of work are never silent."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 3.0
"""Seconds between two lines."""


@contextmanager
def progress(task: str, done: Callable[[], str] = lambda: "at work") -> Iterator[None]:
    """Prints `task` at once, then every three seconds what is `done` so far, and the seconds when it has succeeded."""
    start, ended = time.monotonic(), threading.Event()

    def say(words: str) -> None:
        print(f"{task}: {words}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    def watch() -> None:
        while not ended.wait(INTERVAL):
            say(done())

    print(task, file=sys.stderr, flush=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    say("done")


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def bytes_of(folder: Path, pattern: str) -> int:
    """The bytes of files below `folder`, also while others write and move them: a name counts once."""
    sizes = {}
    for file in folder.rglob(pattern):
        with suppress(FileNotFoundError):
            sizes[file.name] = file.stat().st_size
    return sum(sizes.values())
