"""One process per run folder on a local disk: a lock that the system releases however the process ends."""

import functools
import os
import weakref
from typing import IO

from etils import epath

from grpo_jax.errors import UserError

_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def take_lock(folder: epath.Path) -> IO[str]:
    """Lock `folder` through its file `.lock`; closing the returned file, or the end of this process, unlocks.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    import fcntl

    file = _open(folder)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"output_dir: {folder} is in use by process {owner}; wait for it, or give another output_dir"
        ) from None
    except OSError:
        return file  # some network disks have no locks
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _close_after_fork()
    _held.add(file)
    return file


def _open(folder: epath.Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(os.fspath(folder / ".lock"), os.O_RDWR | os.O_CREAT, 0o644), "r+")
    except OSError as fault:
        raise UserError(
            f"output_dir: {folder} cannot be written: {fault.strerror}; give another output_dir"
        ) from fault


@functools.cache
def _close_after_fork() -> None:
    """A forked child shares the lock, so a worker that outlives a killed run would keep its folder locked."""
    os.register_at_fork(after_in_child=lambda: [file.close() for file in list(_held)])
