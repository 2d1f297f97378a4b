"""A disk that is full ends a command in a line, wherever it was writing."""

import errno
from collections.abc import Iterator

_FULL = {errno.ENOSPC, errno.EDQUOT}
_SAID = ("No space left on device", "Disk quota exceeded")  # by libraries that do not raise OSError


def full_disk(fault: BaseException) -> str | None:
    """What to say if `fault`, or what it comes from, is a full disk; None if it is something else."""
    for each in _origins(fault):
        if isinstance(each, OSError) and each.errno in _FULL:
            return f"{each.filename or 'writing'}: {_ADVICE}"
        if any(words in str(each) for words in _SAID):
            return f"writing: {_ADVICE}"
    return None


_ADVICE = (
    "no space left on the disk; free some, and give the command again: a run goes on from its last checkpoint"
)


def _origins(fault: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while fault is not None and fault not in seen:
        seen.append(fault)
        yield fault
        fault = fault.__cause__ or fault.__context__
