"""seccomp: a filter of system calls in the kernel, which needs no privileges to install.

Beside namespaces it is a second wall; without them it alone keeps a program from the network and from other processes.
The filter lists the calls that are refused rather than those that are allowed, so that all of Python keeps working.
"""

import ctypes
import errno
import os
import struct

from grpo_jax.sandbox import linux

_REFUSED = {  # name: (x86_64, aarch64); None where the machine has no such call
    # the network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "process_madvise": (440, 440), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    # memory that no limit counts, or that survives the program
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # parts of the kernel that attacks use and programs do not need
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "acct": (163, 89), "swapon": (167, 224),
    "quotactl": (179, 60), "personality": (135, 92), "modify_ldt": (154, None), "uselib": (134, None),
    "iopl": (172, None), "ioperm": (173, None), "fanotify_init": (300, 262), "syslog": (103, 116),
}  # fmt: skip
_OF_ITSELF_ONLY = {  # allowed if the first argument, a process id, is 0 or the program's own
    "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261), "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
}  # fmt: skip
_OF_FILES = {  # what Landlock does not check: changes of a file's attributes, and (until Linux 6.2) truncation
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45),
}  # fmt: skip
_FORKS = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (its column in the tables above, the kernel's number for it)."""
_X32 = 0x40000000
_THREAD = 0x00010000
_DATAGRAM = 2
_CUT, _FOR_WRITING = 0o1000, 0o3
_NEW_NAMESPACES = 0x7E020000
"""The flags of clone for all kinds of namespaces."""

_LOAD, _EQUAL, _ABOVE, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
"""Offsets in `seccomp_data`: the call's number, the machine, and the low halves of the first three arguments."""
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_FILTER = 2

Instruction = tuple[int, int, int, int]
"""Opcode, value, instructions to skip if true, instructions to skip if false."""


def install(processes: int, alone: bool, own_files: bool) -> None:
    """Install the filter in this process; its children inherit it.

    Args:
        processes: with 1, the program may start threads but no process.
        alone: the program sees only its own processes, so signals need no filter.
        own_files: the program sees no file of the machine that it could write.

    Raises:
        OSError: the kernel has no seccomp filters, or there is no list of system calls for this machine.
    """
    code = b"".join(
        struct.pack("=HBBI", op, yes, no, value)
        for op, value, yes, no in program(processes, alone, own_files)
    )
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    linux.prctl(linux.SECCOMP, _FILTER, header)


def program(processes: int, alone: bool, own_files: bool) -> list[Instruction]:
    """The instructions of the filter, for the arguments of `install`."""
    if linux.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {linux.machine() or 'this machine'}")
    column, number = _MACHINES[linux.machine()]
    code: list[Instruction] = [(_LOAD, _MACHINE, 0, 0), (_EQUAL, number, 1, 0), (_RETURN, _KILL, 0, 0)]
    code += [(_LOAD, _NUMBER, 0, 0)]
    if column == 0:
        code += [(_ABOVE, _X32, 0, 1), _refusal()]
    refused = _REFUSED | (_FORKS if processes == 1 else {}) | ({} if own_files else _OF_FILES)
    for numbers in refused.values():
        code += _on(numbers[column], [_refusal()])
    # The flags of these calls are in memory, which a filter cannot read. C libraries fall back to the older calls.
    code += _on(_CLONE3[column], [_refusal(errno.ENOSYS)])
    code += _on(_OPENAT2[column], [_refusal(errno.ENOSYS)])
    if not own_files:
        code += _on(_OPEN[column], _opened(_SECOND))
        code += _on(_OPENAT[column], _opened(_THIRD))
    code += _on(_CLONE[column], _clone(processes))
    code += _on(_SOCKETPAIR[column], _pair())
    if not alone:
        for numbers in _OF_ITSELF_ONLY.values():
            code += _on(numbers[column], _of_itself())
    return [*code, (_RETURN, _ALLOW, 0, 0)]


def _on(number: int | None, then: list[Instruction]) -> list[Instruction]:
    """Run `then`, which ends in a return, for one system call."""
    return [] if number is None else [(_EQUAL, number, 0, len(then)), *then]


def _refusal(number: int = errno.EPERM) -> Instruction:
    return (_RETURN, _REFUSE | number, 0, 0)


def _clone(processes: int) -> list[Instruction]:
    """Refuse new namespaces, and with one process allowed, everything but threads."""
    no_namespace = [(_LOAD, _FIRST, 0, 0), (_SET, _NEW_NAMESPACES, 0, 1), _refusal()]
    thread = [(_SET, _THREAD, 1, 0), _refusal()] if processes == 1 else []
    return [*no_namespace, *thread, (_RETURN, _ALLOW, 0, 0)]


def _opened(flags: int) -> list[Instruction]:
    """Refuse to truncate a file that is opened for reading only."""
    cut = [(_LOAD, flags, 0, 0), (_SET, _CUT, 0, 2), (_SET, _FOR_WRITING, 1, 0), _refusal()]
    return [*cut, (_RETURN, _ALLOW, 0, 0)]


def _pair() -> list[Instruction]:
    """Allow connected pairs (asyncio uses them), refuse datagram sockets: those can send to other addresses."""
    return [(_LOAD, _SECOND, 0, 0), (_SET, _DATAGRAM, 0, 1), _refusal(), (_RETURN, _ALLOW, 0, 0)]


def _of_itself() -> list[Instruction]:
    """Allow process id 0 and that of this process, which is the one that becomes the program."""
    answer = [_refusal(), (_RETURN, _ALLOW, 0, 0)]
    return [(_LOAD, _FIRST, 0, 0), (_EQUAL, 0, 2, 0), (_EQUAL, os.getpid(), 1, 0), *answer]
