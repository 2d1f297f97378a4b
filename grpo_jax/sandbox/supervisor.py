"""The supervisor: the process that puts up walls around a program, starts it, ends what is left of it, and reports.

    local.run  ->  supervisor  ->  (with namespaces: the first process in them  ->)  program

A fresh interpreter is started for each program, so nothing of the trainer is in it. It writes lines of JSON:
`{"walls": [...]}` as the program begins, then `{"status": ..., "stopped": ...}`, or `{"failed": why}`. SIGTERM ends the
program and every process it has started; so does the end of the process that started the supervisor.
"""

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from grpo_jax.sandbox.protections import open_to

LINUX = sys.platform.startswith("linux")
if LINUX:
    from grpo_jax.sandbox import landlock, linux, seccomp, walls

OWN_USERS = 2**30
"""First of the user ids that nobody has: a program that root runs gets this one plus its supervisor's process id."""
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}
_SWEEP_SECONDS = 5.0
_PROGRAM = """\
import builtins, sys, _sitebuiltins
builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "the end of stdin")
sys.argv[:] = [__file__ := "main.py"]
del builtins, sys, _sitebuiltins
exec(compile(open("main.py", "rb").read(), "main.py", "exec"))
"""
"""Runs main.py without `site`, so without the machine's packages and their .pth files, but with `exit` and `quit`."""


class Supervisor:
    """Supervises one program. `request` comes from `local.request`; `report` is the descriptor for the report."""

    def __init__(self, request: dict[str, Any], report: int):
        self.request, self.report = request, report
        self.walls: list[str] = []
        self.user = self._own_user()
        self.others = _tasks_of(os.geteuid()) if self.user is None else 0

    def _own_user(self) -> int | None:
        """The user id for the program; None for the supervisor's own."""
        if not (LINUX and os.geteuid() == 0 and "user" in self.request["walls"]):
            return None
        with open("/proc/self/uid_map", encoding="ascii") as table:
            highest = max(int(line.split()[0]) + int(line.split()[2]) for line in table)
        return OWN_USERS + os.getpid() if highest > OWN_USERS + 2**22 else walls.NOBODY

    def supervise(self) -> None:
        """Run the program from start to end. Returns in the outermost process only, when no process of it is left."""
        if not self._wall("namespaces", lambda: walls.separate()):
            if LINUX:
                linux.prctl(linux.SUBREAPER, 1)
            self._unreadable()
            self._run()
            return
        self._unreadable()
        first = os.fork()
        if first == 0:
            self._inside()
        self._wait(first, float("inf"))
        os.waitpid(first, 0)

    def _inside(self) -> None:
        """Run as the first process of the namespaces: when it ends, the kernel ends all others."""
        try:
            linux.prctl(linux.DEATH_SIGNAL, signal.SIGKILL)
            size, user = self.request["files"], self.user
            inner = walls.NOBODY if user is None and os.geteuid() != 0 else (user or 0)
            self._wall("root", lambda: walls.enter_root(size, inner))
            self._run()
        except BaseException as fault:
            self._say({"failed": f"{type(fault).__name__}: {fault}"})
        finally:
            os._exit(0)

    def _unreadable(self) -> None:
        """Keep the program, which may be the same user, from reading the supervisor's memory."""
        if LINUX:
            linux.prctl(linux.DUMPABLE, 0)

    def _wall(self, name: str, build: Any) -> bool:
        """Put up a wall if it is requested. Returns whether the kernel permitted it."""
        if not LINUX or name not in self.request["walls"]:
            return False
        try:
            build()
        except OSError:
            return False
        self.walls.append(name)
        return True

    def _run(self) -> None:
        """Start the program, wait for it, end what is left of it, and report."""
        with self._folder() as folder:
            program = os.fork()
            if program == 0:
                self._become(folder)
            stopped = self._wait(program, time.monotonic() + self.request["wall"])
            # Kill its group before waiting for it: until then no other process can get its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program, signal.SIGKILL)
            _, status, used = os.wait4(program, 0)
            if "namespaces" not in self.walls:
                sweep()
        seconds = used.ru_utime + used.ru_stime
        self._say({"status": os.waitstatus_to_exitcode(status), "cpu": seconds, "stopped": stopped})

    def _wait(self, process: int, deadline: float) -> bool:
        """Wait until a process has ended, without reaping it. Returns whether SIGTERM or the deadline had it killed."""
        stopped = False
        while not _ended(process):
            left = min(max(deadline - time.monotonic(), 0.0), 3600.0)
            if _end_requested(left) or time.monotonic() >= deadline:
                stopped, deadline = True, float("inf")
                os.kill(process, signal.SIGKILL)
        return stopped

    @contextlib.contextmanager
    def _folder(self) -> Iterator[str]:
        """The folder that the program may write to, with main.py in it."""
        own = "root" in self.walls
        folder = walls.WORK if own else self.request["folder"] + "/work"
        if not own:
            # The supervisor owns the outer folder: a program could replace a folder that it owns itself.
            os.mkdir(self.request["folder"], 0o711)
            os.mkdir(folder, 0o700)
        try:
            path = os.path.join(folder, "main.py")
            with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(self.request["code"])
            if self.user is not None:
                for owned in (folder, path, 0, 1, 2):
                    os.chown(owned, self.user, self.user)
            yield folder
        finally:
            if not own:
                remove(self.request["folder"])

    def _become(self, folder: str) -> None:
        """Become the program, behind the inner walls. Never returns."""
        try:
            os.setsid()
            os.chdir(folder)
            self._limit()
            self._change_user()
            if LINUX:
                linux.prctl(linux.DEATH_SIGNAL, signal.SIGKILL)
                linux.prctl(linux.NO_NEW_PRIVILEGES, 1)
            if "root" not in self.walls:
                self._wall("landlock", lambda: landlock.restrict(folder))
            alone, own_files = "namespaces" in self.walls, "root" in self.walls
            self._wall("seccomp", lambda: seccomp.install(self.request["processes"], alone, own_files))
            if missing := self.request["strict"] and open_to(self.walls):
                raise OSError(f"nothing keeps a program from {', '.join(missing)} here")
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            python = os.path.realpath(sys.executable)
            if not os.access(python, os.X_OK):
                raise OSError(f"user {os.getuid()} cannot reach {python}; install Python where all can")
            self._say({"walls": self.walls})
            command = [python, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _PROGRAM]
            os.execve(python, command, environment(folder))
        except BaseException as fault:
            self._say({"failed": f"{type(fault).__name__}: {fault}"})
        finally:
            os._exit(127)

    def _limit(self) -> None:
        request = self.request
        seconds = request["cpu"]
        # The kernel counts tasks by user, since Linux 5.14 by user and namespace. A user of its own has no other tasks;
        # in a user namespace there are also the supervisor and the first process.
        apart = self.user is None and "namespaces" in self.walls and _kernel() >= (5, 14)
        tasks = request["threads"] + request["processes"] + (2 if apart else self.others)
        bounds = {
            "RLIMIT_CPU": (seconds, seconds + 1),
            "RLIMIT_AS": request["memory"],
            "RLIMIT_FSIZE": request["files"],
            "RLIMIT_NOFILE": request["open_files"],
            "RLIMIT_NPROC": tasks,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
        for name, bound in bounds.items():
            if (kind := getattr(resource, name, None)) is not None:
                _lower(kind, bound)

    def _change_user(self) -> None:
        if self.user is None:
            return
        os.setgroups([])
        os.setresgid(self.user, self.user, self.user)
        os.setresuid(self.user, self.user, self.user)
        self.walls.append("user")

    def _say(self, line: dict[str, Any]) -> None:
        os.write(self.report, json.dumps(line).encode() + b"\n")


def environment(folder: str) -> dict[str, str]:
    """The whole environment of a program. Sets of strings have the same order in each run."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        # Each further heap for threads would take 64 MiB of address space.
        "MALLOC_ARENA_MAX": "1",
    }


def sweep() -> None:
    """End all descendants of this process. On Linux orphans among them have become its children."""
    until = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < until:
        left = _descendants()
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return


def remove(folder: str) -> None:
    """Delete a folder, whatever a program has put into it.

    Links are not followed, unreadable folders are made readable, and nested folders are moved to the top one by one,
    because a thousand nested ones are too deep for a path and for recursion.
    """
    fresh = (f"{folder}/{os.getpid()}-{count}" for count in itertools.count())
    with contextlib.suppress(OSError):
        if os.path.islink(folder):
            os.unlink(folder)
        while inside := list(os.scandir(folder)):
            for entry in inside:
                _empty(entry.path, fresh) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        os.rmdir(folder)


def _empty(folder: str, fresh: Iterator[str]) -> None:
    os.chmod(folder, 0o700)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
            os.rename(entry.path, next(fresh))
        else:
            os.unlink(entry.path)
    os.rmdir(folder)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for process in _processes():
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(process)
    found, heads = [], [os.getpid()]
    while heads:
        heads = [child for head in heads for child in children.get(head, [])]
        found += heads
    return found


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _tasks_of(user: int) -> int:
    count = 0
    for process in _processes():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{process}").st_uid == user:
                count += len(os.listdir(f"/proc/{process}/task"))
    return count


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end_requested(seconds: float) -> bool:
    """Sleep until a child ends or SIGTERM comes, for at most `seconds`. Returns whether SIGTERM came."""
    if hasattr(signal, "sigtimedwait"):
        received = signal.sigtimedwait(_SIGNALS, seconds)
        return received is not None and received.si_signo == signal.SIGTERM
    time.sleep(min(seconds, 0.02))
    return signal.SIGTERM in signal.sigpending()


def _lower(kind: int, bound: Any) -> None:
    """Set a resource limit, but not above the hard limit of this process."""
    soft, hard = bound if isinstance(bound, tuple) else (bound, bound)
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft, hard))


def main(request: int, report: int, parent: int) -> None:
    """Run a supervisor: descriptors of the request and the report, and the id of the process that started it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if LINUX:
        linux.prctl(linux.DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        return
    for descriptor in (request, report):
        os.set_inheritable(descriptor, False)
    with os.fdopen(request, encoding="utf-8") as file:
        content = json.load(file)
    supervisor = Supervisor(content, report)
    try:
        supervisor.supervise()
    except BaseException as fault:
        supervisor._say({"failed": f"{type(fault).__name__}: {fault}"})
