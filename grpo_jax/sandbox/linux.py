"""System calls that the standard library of Python 3.11 lacks. Each raises OSError.

Numbers and constants are those of the kernel's uapi headers.
"""

import ctypes
import os

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
NEW_PROCESSES, NEW_NETWORK, NEW_CGROUP = 0x20000000, 0x40000000, 0x02000000

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = (
    1, 2, 4, 8, 0x20, 0x1000, 0x4000, 0x40000,
)  # fmt: skip
_DETACH = 2

DEATH_SIGNAL, DUMPABLE, SECCOMP, NO_NEW_PRIVILEGES, SUBREAPER = 1, 4, 22, 38, 36

_LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int, call: str) -> int:
    """The result of a system call. Raises the OSError of errno if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(_LIBC.syscall(ctypes.c_long(number), *wide), f"system call {number}")


def prctl(option: int, value: int, more: object = 0) -> None:
    last = ctypes.c_ulong(more) if isinstance(more, int) else more
    checked(_LIBC.prctl(option, ctypes.c_ulong(value), last, 0, 0), f"prctl {option}")


def unshare(flags: int) -> None:
    checked(_LIBC.unshare(flags), "unshare")


def name_host(name: str) -> None:
    checked(_LIBC.sethostname(name.encode(), len(name)), "sethostname")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = (source.encode(), target.encode(), kind.encode() or None)
    checked(_LIBC.mount(*texts, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def unmount(folder: str) -> None:
    checked(_LIBC.umount2(folder.encode(), _DETACH), f"umount {folder}")


def change_root(folder: str) -> None:
    """Make a mount point the root of this mount namespace, and detach the old root."""
    os.chdir(folder)
    checked(_LIBC.pivot_root(b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def machine() -> str:
    """The machine of this interpreter, `x86_64` or `aarch64`; empty if the interpreter is 32-bit."""
    return os.uname().machine if ctypes.sizeof(ctypes.c_void_p) == 8 else ""
