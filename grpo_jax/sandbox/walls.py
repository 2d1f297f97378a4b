"""The outer walls around a program: namespaces, and a file system of its own.

In its namespaces it sees only its own processes, no network (not even a loopback) and no shared memory; when the first
process there ends, the kernel ends all the others. Its file system holds what Python needs, read-only, and `/work`,
which is in memory, limited in size, and disappears with the last process. Home folders, data, sockets and devices are
not visible.
"""

import os
import sys

from grpo_jax.sandbox import linux

NOBODY = 65534
WORK = "/work"
_FILES = 1024
"""The most files and folders in `/work`."""

_APART = (
    linux.NEW_MOUNTS
    | linux.NEW_PROCESSES
    | linux.NEW_NETWORK
    | linux.NEW_IPC
    | linux.NEW_UTS
    | linux.NEW_CGROUP
)
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/nix/store", "/gnu/store")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_KEPT = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
"""Mount options that a remount must keep: the word in mountinfo -> its flag."""


def separate() -> None:
    """Leave the machine's namespaces; the next forked process is the first one of the new namespaces.

    Root needs no user namespace; other users get one in which they are nobody.

    Raises:
        OSError: the kernel refuses; nothing has changed.
    """
    if os.geteuid() == 0:
        linux.unshare(_APART)
        return
    user, group = os.geteuid(), os.getegid()
    linux.unshare(_APART | linux.NEW_USER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        _write(f"/proc/self/{name}", text)


def readable() -> list[str]:
    """Paths that a program may read beside its own folder: this interpreter's and the system's shared libraries."""
    own = {sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    wanted = sorted(own) + [*_SYSTEM, *_SYSTEM_FILES]
    return [path for path in wanted if os.path.exists(path)]


def enter_root(size: int, user: int) -> None:
    """Switch this process to a file system of its own, with `/work` of `size` bytes that `user` owns.

    Raises:
        OSError: the kernel refuses; nothing that a program sees has changed.
    """
    linux.mount("none", "/", flags=linux.RECURSIVE | linux.PRIVATE)
    sources = readable()
    root = _mount_point(sources)
    linux.mount("tmpfs", root, "tmpfs", linux.NO_SUID, "size=1m,mode=755")
    try:
        _furnish(root, sources, size, user)
        linux.change_root(root)
    except OSError:
        linux.unmount(root)
        raise


def _furnish(root: str, sources: list[str], size: int, user: int) -> None:
    """Fill the new root. Afterwards only `/work` can be written."""
    linux.name_host("sandbox")
    for source in sources:
        _show(source, root)
    _only_read(root)
    _devices(root)
    for folder in ("/proc", WORK):
        os.makedirs(root + folder, exist_ok=True)
    os.symlink(WORK, root + "/tmp")
    _processes(root)
    options = f"size={size},nr_inodes={_FILES},mode=700,uid={user},gid={user}"
    linux.mount("tmpfs", root + WORK, "tmpfs", linux.NO_SUID | linux.NO_DEVICES | linux.NO_EXEC, options)
    linux.mount("none", root, flags=linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SUID)


def _mount_point(sources: list[str]) -> str:
    """A folder of the machine that contains none of the sources, so that mounting over it hides none of them."""
    for folder in ("/tmp", "/var/tmp", "/mnt", "/run"):
        if os.path.isdir(folder) and not any(f"{source}/".startswith(f"{folder}/") for source in sources):
            return folder
    raise OSError("no folder to mount a root on")


def _show(source: str, root: str) -> None:
    """Make `source` visible at the same path in the new root: copy a link, bind-mount anything else."""
    target = root + source
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        _write(target, "")
    linux.mount(source, target, flags=linux.BIND | linux.RECURSIVE)


def _only_read(root: str) -> None:
    """Remount everything in the new root read-only, including the mounts inside the bind mounts."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        mounts = [line.split() for line in table]
    always = linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SUID | linux.NO_DEVICES
    for _, _, _, _, point, options, *_ in mounts:
        if point.startswith(root + "/"):
            kept = sum(flag for word, flag in _KEPT.items() if word in options.split(","))
            linux.mount("none", _unescaped(point), flags=always | kept)


def _unescaped(point: str) -> str:
    """A path of mountinfo, which writes a space as `\\040`, as it is."""
    for code in ("040", "011", "012", "134"):
        point = point.replace(f"\\{code}", chr(int(code, 8)))
    return point


def _devices(root: str) -> None:
    os.makedirs(f"{root}/dev", exist_ok=True)
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        linux.mount(f"/dev/{name}", f"{root}/dev/{name}", flags=linux.BIND)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")


def _processes(root: str) -> None:
    """Mount `/proc` of the new process namespace; from Linux 5.8 on it shows nothing but processes.

    A container may not be permitted to mount it; the program then lacks `/dev/stdin` and the like.
    """
    flags = linux.NO_SUID | linux.NO_DEVICES | linux.NO_EXEC | linux.READ_ONLY
    for options in ("subset=pid", ""):
        try:
            linux.mount("proc", root + "/proc", "proc", flags, options)
            return
        except OSError:
            continue


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
