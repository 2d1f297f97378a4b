"""Runs one program on this machine: starts its supervisor, feeds and reads its pipes, and limits its output."""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import grpo_jax
from grpo_jax.sandbox.outcome import Ended, Limits, Outcome, SandboxError
from grpo_jax.sandbox.protections import WALLS
from grpo_jax.sandbox.supervisor import environment, remove

BACKSTOP_SECONDS = 10.0
"""Time beyond its program's that a supervisor gets to start, clean up and report before it is killed itself."""
_CHUNK = 2**16
_MAIN = (
    "import sys; sys.path.append(sys.argv[1]); from grpo_jax.sandbox.supervisor import main; "
    "main(*map(int, sys.argv[2:]))"
)


def run(
    code: str,
    stdin: str = "",
    limits: Limits | None = None,
    *,
    strict: bool = False,
    walls: Iterable[str] = WALLS,
) -> Outcome:
    """Run a Python program until it ends or reaches a limit. No process or file of it is left on return.

    Args:
        code: the source of the program. Only the standard library can be imported.
        stdin: the program's standard input.
        strict: refuse to run where a program could reach files, the network or processes of the machine.
        walls: the walls to put up where the kernel permits it.

    Raises:
        SandboxError: the program was not run, or it is not known how it ended.
    """
    limits = limits or Limits()
    begun = time.monotonic()
    folder = os.path.join(tempfile.gettempdir(), f"grpo-sandbox-{os.getpid()}-{os.urandom(6).hex()}")
    try:
        exchange = _Exchange(_start(request(code, limits, folder, strict, walls)), stdin, limits.output)
        exchange.until(begun + limits.patience + BACKSTOP_SECONDS)
    finally:
        if os.path.lexists(folder):
            remove(folder)
    return _outcome(exchange, limits, time.monotonic() - begun)


def request(
    code: str, limits: Limits, folder: str, strict: bool = False, walls: Iterable[str] = WALLS
) -> dict[str, Any]:
    """The request to the supervisor. `folder` is for the program's files if it gets no file system of its own."""
    bounds = {
        name: getattr(limits, name) for name in ("memory", "processes", "threads", "files", "open_files")
    }
    times = {"cpu": math.ceil(limits.cpu), "wall": limits.patience}
    return {"code": code, "folder": folder, "walls": list(walls), "strict": strict, **bounds, **times}


class _Start:
    """A running supervisor, and the read end of its report pipe."""

    def __init__(self, process: subprocess.Popen[bytes], report: int):
        self.process, self.report = process, report


def _start(content: dict[str, Any]) -> _Start:
    """Start a supervisor with this request."""
    root = str(Path(grpo_jax.__file__).absolute().parents[1])
    python = os.path.realpath(sys.executable)
    ours, theirs = os.pipe()
    try:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(content).encode())
            file.seek(0)
            fds = (file.fileno(), theirs)
            process = subprocess.Popen(
                [python, "-I", "-S", "-c", _MAIN, root, str(fds[0]), str(fds[1]), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                start_new_session=True,
                env=environment("/"),
                bufsize=0,
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return _Start(process, ours)


class _Exchange:
    """Passes stdin to the program, and reads its outputs (at most `most` bytes of each) and the supervisor's report."""

    def __init__(self, start: _Start, stdin: str, most: int):
        self.process, self.most = start.process, most
        self.left = memoryview(stdin.encode("utf-8", "replace"))
        self.report, self.stdout, self.stderr = bytearray(), bytearray(), bytearray()
        self.overran = self.abandoned = False
        self.input, output, error = (pipe.fileno() for pipe in self._pipes())
        self.outputs = {start.report: self.report, output: self.stdout, error: self.stderr}
        self.report_pipe = start.report

    def _pipes(self) -> list[IO[bytes]]:
        return [pipe for pipe in (self.process.stdin, self.process.stdout, self.process.stderr) if pipe]

    def until(self, deadline: float) -> None:
        """Write and read until supervisor and program have ended, or until the deadline."""
        try:
            with selectors.DefaultSelector() as pipes:
                for descriptor in (*self.outputs, self.input):
                    os.set_blocking(descriptor, False)
                    write = descriptor == self.input
                    pipes.register(descriptor, selectors.EVENT_WRITE if write else selectors.EVENT_READ)
                while self.report_pipe in pipes.get_map() and not self.abandoned:
                    self._pass_on(pipes, deadline)
                for descriptor in self.outputs:
                    while descriptor in pipes.get_map() and self._read(descriptor, pipes):
                        pass
        finally:
            self._end()

    def _pass_on(self, pipes: selectors.BaseSelector, deadline: float) -> None:
        ready = pipes.select(max(deadline - time.monotonic(), 0.0))
        self.abandoned = not ready and time.monotonic() >= deadline
        for key, _ in ready:
            if key.fd == self.input:
                self._write(pipes)
            else:
                self._read(key.fd, pipes)

    def _write(self, pipes: selectors.BaseSelector) -> None:
        try:
            self.left = self.left[os.write(self.input, self.left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # the program has closed its stdin
            self.left = self.left[:0]
        if not self.left:
            pipes.unregister(self.input)
            self._pipes()[0].close()

    def _read(self, descriptor: int, pipes: selectors.BaseSelector) -> bool:
        """Read what is available. Returns whether there may be more."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            pipes.unregister(descriptor)
            return False
        kept = self.outputs[descriptor]
        room = self.most - len(kept) if descriptor != self.report_pipe else _CHUNK
        kept += data[:room]
        if len(data) > room and not self.overran:
            self.overran = True
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        return True

    def _end(self) -> None:
        """End the supervisor's processes, and close all descriptors."""
        # A supervisor whose report has ended is about to exit; an abandoned one has missed its deadline.
        if self.report_pipe in self.outputs and not self.abandoned:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(BACKSTOP_SECONDS)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                pipe.close()
        os.close(self.report_pipe)


def _outcome(exchange: _Exchange, limits: Limits, seconds: float) -> Outcome:
    report: dict[str, Any] = {}
    for line in exchange.report.splitlines():
        report |= json.loads(line)
    if "failed" in report:
        raise SandboxError(f"the program was not run: {report['failed']}")
    stdout, stderr = (bytes(kept).decode("utf-8", "replace") for kept in (exchange.stdout, exchange.stderr))
    if "status" not in report and not exchange.overran:
        raise SandboxError(
            "the supervisor ended before the program; " + (stderr.strip()[-300:] or "it printed nothing")
        )
    status = report.get("status", -signal.SIGKILL)
    ended = "output" if exchange.overran else _ended(status, report, limits, stderr)
    return Outcome(
        stdout=stdout,
        stderr=stderr,
        exit_code=status if status >= 0 else None,
        signal=-status if status < 0 else None,
        ended=ended,
        seconds=seconds,
        walls=tuple(report.get("walls", ())),
    )


def _ended(status: int, report: dict[str, Any], limits: Limits, stderr: str) -> Ended:
    if report["stopped"]:
        return "wall"
    if status == -signal.SIGXCPU or (status == -signal.SIGKILL and report["cpu"] >= limits.cpu):
        return "cpu"
    if status != 0 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "signal" if status < 0 else "exit"
