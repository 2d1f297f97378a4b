"""What the process is doing now, and how far it is, so that nothing is silent for long.

    with phase("evaluation"):
        current().count(64, 256, "prompts")

There is one status in a process, which `current` finds: programs are compiled and weights are read in every room, and
a process has one terminal. To pass it along would give every constructor an argument that changes no result. Rooms that
may not import this one take a callback instead. Nothing here changes what is computed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

SECONDS_BETWEEN_LOOKS = 0.5
_IN_WORDS = {"reward": "waiting for rewards"}  # names of metrics that would not be understood


class Display(Protocol):
    """Where a status is shown; see `status_line.py`. Its methods may be called from two threads."""

    def show(self, now: float, text: str, seconds: float) -> None:
        """Called now and then: at the time `now`, what `text` says has been going on for `seconds`."""

    def note(self, text: str, seconds: float) -> None:
        """Something has ended that took `seconds`."""

    def lend_to_bar(self, lent: bool) -> None:
        """A bar takes the last line of the terminal, and shows the text of the status itself; or gives it back."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Phase:
    """Something that takes a while. `inner`: seconds of the phases that ran inside it."""

    def __init__(self, name: str, start: float):
        self.name, self.start, self.inner, self.words = name, start, 0.0, ""

    def text(self, now: float) -> str:
        """Its name, how long it has lasted, how far it is."""
        lasted = f"{self.name}, {duration(now - self.start)}"
        return f"{lasted}: {self.words}" if self.words else lasted


class Status:
    """The phases that are under way, shown on `display`; None: nowhere."""

    def __init__(self, display: Display | None, clock: Callable[[], float] = time.monotonic):
        self._display, self._clock = display, clock
        self._phases: list[Phase] = []  # each inside the one before
        self._compiled = 0
        self._ended = threading.Event()

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return self._display is None

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Say that `name` is under way."""
        phase = Phase(_IN_WORDS.get(name, name), self._clock())
        self._phases.append(phase)
        try:
            yield phase
        finally:
            self._phases.remove(phase)
            for outer in self._phases[-1:]:
                outer.inner += self._clock() - phase.start

    @contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Say that the program `name` is being compiled, and then how long it took."""
        self._compiled += 1
        with self.phase(f"compiling {name}") as phase:
            phase.words = f"program {self._compiled} so far"
            yield
        seconds = self._clock() - phase.start
        if self._display:
            self._display.note(f"compiled {name} in {duration(seconds)}", seconds)

    def report(self, words: str) -> None:
        """Say how far the innermost phase is."""
        for phase in self._phases[-1:]:
            phase.words = words

    def count(self, done: int, total: int, unit: str) -> None:
        """Say that so many of all are done."""
        self.report(f"{done:,} of {total:,} {unit}")

    @property
    def seconds(self) -> float:
        """Seconds of the innermost phase, without those of the phases inside it, such as compilations."""
        return sum(self._clock() - phase.start - phase.inner for phase in self._phases[-1:])

    def text(self) -> str:
        """The phases that have lasted a second or more, the outermost first; empty if there is none, or if nothing is
        shown. Shorter ones, such as those of quick steps, would only flicker."""
        now = self._clock()
        return "" if self.quiet else "; ".join(p.text(now) for p in list(self._phases) if now - p.start >= 1)

    def look(self) -> None:
        """Show what is going on now."""
        now, phases = self._clock(), list(self._phases)
        if self._display and not self._ended.is_set():
            self._display.show(now, self.text(), now - phases[0].start if phases else 0.0)

    def lend_to_bar(self, lent: bool) -> None:
        """As of `Display`."""
        if self._display:
            self._display.lend_to_bar(lent)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Look now and then, in a thread that does not keep the process alive."""
        thread = threading.Thread(target=self._watch, name="status", daemon=True)
        if self._display:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            if self._display:
                thread.join(1.0)  # a terminal that is paused must not stop the process
                self._display.close()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self.look()


_current = Status(None)


def current() -> Status:
    """The status of the process; outside `use` one that shows nothing."""
    return _current


def phase(name: str) -> AbstractContextManager[Phase]:
    """`Status.phase` of the process's status."""
    return _current.phase(name)


@contextmanager
def use(status: Status) -> Iterator[None]:
    """Make `status` the process's, and show it."""
    global _current
    before, _current = _current, status
    try:
        with status.shown():
            yield
    finally:
        _current = before


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
