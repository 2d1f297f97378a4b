"""The filter of system calls, run by a small BPF interpreter: its answer to each call, on both architectures."""

import pytest

from grpo_jax.sandbox import linux, seccomp

ALLOW, KILL, PERMISSION, ABSENT = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {  # from the kernel's tables, x86_64 and aarch64
    "read": (0, 63), "write": (1, 64), "openat": (257, 56), "execve": (59, 221), "mmap": (9, 222), "kill": (62, 129),
    "socket": (41, 198), "connect": (42, 203), "socketpair": (53, 199), "clone": (56, 220), "clone3": (435, 435),
    "ptrace": (101, 117), "unshare": (272, 97), "chmod": (90, None), "fchmodat": (268, 53), "prlimit64": (302, 261),
    "fork": (57, None), "io_uring_setup": (425, 425), "open": (2, None), "getpid": (39, 172), "futex": (202, 98),
}  # fmt: skip


def answer(program, machine, number, *arguments):
    """What the kernel would do: classic BPF with the instructions that the filter uses."""
    words = {0: number, 4: MACHINES[machine]}
    for i, value in enumerate(arguments):
        words[16 + 8 * i] = value & 0xFFFFFFFF
    at = held = 0
    while True:
        code, value, yes, no = program[at]
        assert 0 <= yes < 256
        assert 0 <= no < 256
        at += 1
        if code == 0x20:
            held = words.get(value, 0)
        elif code == 0x06:
            return value
        else:
            true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += yes if true else no


@pytest.fixture(params=MACHINES)
def says(request, monkeypatch):
    monkeypatch.setattr(linux, "machine", lambda: request.param)
    column = list(MACHINES).index(request.param)

    def ask(name, *arguments, processes=1, alone=True, own_files=True):
        if (number := NUMBERS[name][column]) is None:
            pytest.skip(f"{request.param} has no {name}")
        return answer(seccomp.program(processes, alone, own_files), request.param, number, *arguments)

    return ask


@pytest.mark.parametrize("name", ["read", "write", "openat", "execve", "mmap", "getpid", "futex"])
def test_what_python_needs_is_allowed(says, name):
    for alone in (True, False):
        assert says(name, alone=alone, own_files=alone) == ALLOW


@pytest.mark.parametrize("name", ["socket", "connect", "ptrace", "unshare", "io_uring_setup"])
def test_calls_that_lead_outside_are_refused(says, name):
    for processes in (1, 9):
        assert says(name, processes=processes) == PERMISSION


def test_threads_are_allowed_and_processes_only_where_there_may_be_several(says):
    thread, child, namespace = 0x3D0F00, 0x1200011, 0x10000011
    assert says("clone", thread) == ALLOW
    assert says("clone", child) == PERMISSION
    assert says("clone", child, processes=2) == ALLOW
    for flags in (namespace, thread | 0x20000, 0x40000000, 0x20000000):
        assert says("clone", flags, processes=2) == PERMISSION
    assert says("clone3") == says("clone3", processes=2) == ABSENT


def test_fork_is_allowed_only_where_there_may_be_several_processes(says):
    assert says("fork") == PERMISSION
    assert says("fork", processes=2) == ALLOW


def test_signals_and_limits_reach_only_the_program_if_it_sees_others(says, monkeypatch):
    monkeypatch.setattr(seccomp.os, "getpid", lambda: 4321)
    for name in ("kill", "prlimit64"):
        assert says(name, 4321, alone=False) == says(name, 0, alone=False) == ALLOW
        assert says(name, 1234, alone=False) == says(name, -1, alone=False) == PERMISSION
        assert says(name, 1234, alone=True) == ALLOW


def test_file_modes_cannot_be_changed_where_the_files_are_the_machines(says):
    assert says("fchmodat", own_files=False) == PERMISSION
    assert says("fchmodat") == ALLOW
    assert says("chmod", own_files=False) == PERMISSION


def test_truncating_a_file_requires_opening_it_for_writing(says):
    read, write, cut = 0, 1, 0o1000
    for name, at in (("openat", 2), ("open", 1)):
        before = [0] * at
        assert says(name, *before, read | cut, own_files=False) == PERMISSION
        assert says(name, *before, write | cut, own_files=False) == ALLOW
        assert says(name, *before, read, own_files=False) == ALLOW
        assert says(name, *before, read | cut) == ALLOW


def test_only_stream_sockets_can_be_paired(says):
    stream, datagram, closing = 1, 2, 0o2000000
    assert says("socketpair", 1, stream | closing) == ALLOW
    assert says("socketpair", 1, datagram | closing) == PERMISSION


def test_calls_of_another_architecture_end_the_program(monkeypatch):
    monkeypatch.setattr(linux, "machine", lambda: "x86_64")
    program = seccomp.program(1, True, True)
    monkeypatch.setitem(MACHINES, "i386", 0x40000003)
    assert answer(program, "i386", 41) == KILL
    assert answer(program, "x86_64", 0x40000000 + 39) == PERMISSION


def test_an_unknown_architecture_is_an_error(monkeypatch):
    monkeypatch.setattr(linux, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program(1, True, True)
