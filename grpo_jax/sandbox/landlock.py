"""Landlock: a process restricts itself to a few folders, which needs no privileges (Linux 5.13 and later).

It protects the machine's files where a program cannot have a file system of its own. `/proc` is not readable. From
Linux 6.7 on it also blocks TCP, from 6.12 on signals to other processes.
"""

import os
import struct

from grpo_jax.sandbox import linux, walls

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1
_BENEATH = 1
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""First version of Landlock that knows them -> the rights over files, as a bit mask."""
_RUN, _WRITE, _READ, _LIST, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_ON_FILES = _RUN | _WRITE | _READ | _TRUNCATE
_TCP, _SCOPES = 3, 3
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def restrict(folder: str) -> None:
    """Restrict this process and its children to reading what Python needs, and to any access within `folder`.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = linux.syscall(_CREATE, None, 0, _VERSION)
    rights = max(value for since, value in _RIGHTS.items() if since <= version)
    words = [rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    words = words[: 1 + (version >= 4) + (version >= 6)]
    rules = linux.syscall(_CREATE, struct.pack(f"={len(words)}Q", *words), 8 * len(words), 0)
    try:
        for path in walls.readable():
            _allow(rules, path, _RUN | _READ | _LIST)
        for path in _DEVICES:
            _allow(rules, path, (_READ | _WRITE | _TRUNCATE) & rights)
        _allow(rules, folder, rights)
        linux.syscall(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights &= -1 if os.path.isdir(path) else _ON_FILES
        linux.syscall(_ADD, rules, _BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
