"""A worker's side of the protocol: JSON lines. The driver says `{"do": "update"}`, the worker does it once and
answers with seconds and memory. What libraries print goes to stderr, which the driver keeps in a file."""

import contextlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Action = Callable[[], Any]


class Line:
    """The worker's connection to the driver."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # standard output is for answers alone
        self.peak, self.busy, self.own = 0, 0.0, 0.0

    def commands(self) -> Iterator[dict[str, Any]]:
        """What the driver asks for, until it has no more questions."""
        for line in iter(sys.stdin.readline, ""):
            yield json.loads(line)

    def send(self, **message: Any) -> None:
        """Answer."""
        print(json.dumps(message), file=self._out, flush=True)

    def fail(self, error: BaseException) -> None:
        """Answer that it went wrong; the whole traceback goes to the log."""
        traceback.print_exc()
        self.send(error=last_line(error))

    def start(self) -> float:
        """The clock when a measurement starts; the memory's peak is counted from here on."""
        self.peak = max(self.peak, peak_memory())
        _forget_peak()
        self.busy, self.own = busy_seconds(), time.process_time()
        return time.perf_counter()

    def done(self, start: float, **more: Any) -> None:
        """Answer with what was measured since `start`."""
        seconds, peak = time.perf_counter() - start, peak_memory()
        self.peak = max(self.peak, peak)
        own = time.process_time() - self.own
        others = max(busy_seconds() - self.busy - own, 0.0) / seconds
        used = {"processor_seconds": own, "others_cores": others}
        self.send(seconds=seconds, peak_bytes=peak, process_peak_bytes=self.peak, **used, **more)

    def measure(self, action: Action) -> None:
        """Do it once, and answer. An action that samples returns how many useful tokens it drew."""
        try:
            start = self.start()
            found = action()
            self.done(start, tokens=found)
        except Exception as error:
            self.fail(error)


def serve(line: Line, actions: Mapping[str, Action], check: Callable[[str], None], **facts: Any) -> None:
    """Answer until the driver ends. `check(file)` writes the log-probs of the given rows."""
    line.send(ready=facts)
    for command in line.commands():
        line.measure(action_of(command, actions, check))


def action_of(command: dict[str, Any], actions: Mapping[str, Action], check: Callable[[str], None]) -> Action:
    """What a command asks for."""
    if command["do"] == "check":
        return lambda: check(command["file"])
    return actions[command["do"]]


def last_line(error: BaseException) -> str:
    """The error in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[-1]}" if said else type(error).__name__


def busy_seconds() -> float:
    """Seconds that all cores together have worked since the machine started, for whichever process; 0 if unknown."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, counters.read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """The process's largest resident memory in bytes, since the peak was last forgotten where that is possible."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _forget_peak() -> None:
    """Linux counts the peak anew after this; elsewhere it stays that of the process's whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def specification() -> dict[str, Any]:
    """What the driver wants of this worker: the file named on the command line."""
    return json.loads(Path(sys.argv[1]).read_text())


def main(build: Callable[[Line, dict[str, Any]], None]) -> None:
    """A worker's whole life: `build` makes the system ready and serves."""
    line = Line()
    try:
        build(line, specification())
    except Exception as error:
        line.fail(error)
        sys.exit(1)
