"""Ctrl-C in a run: once, twice, and where the main thread does not come back."""

import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from grpo_jax.runs.interrupts import INTERRUPTED, Interrupts


@pytest.fixture(autouse=True)
def pythons_own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def said():
    """What is said, with a way to wait for it."""

    class Said(list[str]):
        def __init__(self):
            self.came = threading.Semaphore(0)

        def __call__(self, line):
            self.append(line)
            self.came.release()

        def wait(self):
            assert self.came.acquire(timeout=20)

    return Said()


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_is_only_remembered(said):
    interrupts = Interrupts(said, first="once")

    def steps():
        with interrupts:
            assert not interrupts.asked
            ctrl_c()
            said.wait()
            assert interrupts.asked
            said.append("went on")  # a loop that does not look is interrupted at its end

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert said == ["once", "went on"]


def test_the_second_ctrl_c_interrupts_what_waits(said):
    def steps():
        with Interrupts(said, first="once", second="twice", end=pytest.fail):
            ctrl_c()
            said.wait()
            ctrl_c()
            threading.Event().wait(20)
            said.append("waited to the end")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert said == ["once", "twice"]


def test_afterwards_ctrl_c_is_as_before(said):
    with Interrupts(said, first="once"):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert "interrupts" not in {thread.name for thread in threading.enumerate()}


def test_where_ctrl_c_is_ignored_it_stays_so(said):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts(said, first="once") as interrupts:
        ctrl_c()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert not interrupts.asked


def test_other_signals_are_left_alone(said):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("term"))
    try:
        with Interrupts(said, first="once") as interrupts:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard
    assert not interrupts.asked


IN_C = """
import ctypes, os, signal, sys, threading
from grpo_jax.runs.interrupts import Interrupts

lines = threading.Semaphore(0)
def say(line):
    print(line)
    lines.release()
def press():
    while mutex.raw[0] != 2:  # in glibc: somebody waits
        pass
    os.kill(os.getpid(), signal.SIGINT)
    lines.acquire()
    os.kill(os.getpid(), signal.SIGINT)

with Interrupts(say, first="once", second="twice", patience=0.05):
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(128)
    threading.Thread(target=press, daemon=True).start()
    lock(mutex)
    lock(mutex)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="looks into a lock of glibc")
def test_two_ctrl_c_end_a_process_whose_main_thread_is_in_c():
    """A lock that is never released stands for a compiler: no signal brings the thread back to Python."""
    done = subprocess.run(
        [sys.executable, "-u", "-c", IN_C], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (INTERRUPTED, "once\ntwice\n"), done.stderr
    assert INTERRUPTED == 130
