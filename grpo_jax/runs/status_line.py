"""Where the status is shown: one line of the terminal that is rewritten, or now and then a line of a log."""

import os
import sys
import threading
from typing import Any, TextIO

from grpo_jax.runs.status import Display

SECONDS_BETWEEN_LINES = 30.0
"""Of a log: nothing that is shorter gets a line, and no two lines are nearer."""
SECONDS_OF_A_NOTE = 5.0
"""On a terminal: what took less is not noted."""
_ERASE = "\r\x1b[2K"


def display_for(stream: TextIO) -> Display:
    """What suits `stream`, which is stderr."""
    live = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveLine(stream) if live else LogLines(stream)


class LogLines:
    """Plain lines in a log."""

    def __init__(self, stream: TextIO):
        self._stream, self._last, self._notes = stream, -SECONDS_BETWEEN_LINES, list[str]()

    def show(self, now: float, text: str, seconds: float) -> None:
        """Print a line if it is time for one: with what has ended since the last, and what is going on."""
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        parts = self._notes + ([text] if seconds >= SECONDS_BETWEEN_LINES else [])
        if parts:
            self._last, self._notes = now, []
            print("; ".join(parts), file=self._stream, flush=True)

    def note(self, text: str, seconds: float) -> None:
        """Keep it for the next line, if it took long enough."""
        if seconds >= SECONDS_BETWEEN_LINES:
            self._notes.append(text)

    def lend_to_bar(self, lent: bool) -> None:
        """A log has no bar."""

    def close(self) -> None:
        """Nothing to do."""


class LiveLine:
    """The last line of a terminal. It is erased before anything else is printed on stdout or stderr, and not written
    where a printed line has no end yet."""

    def __init__(self, stream: TextIO):
        self._stream, self._lock = stream, threading.RLock()
        self._drawn, self._lent, self._at_line_start, self._closed = "", False, True, False
        self._watched = {name: file for name in ("stdout", "stderr") if (file := getattr(sys, name)).isatty()}
        self._proxies = {name: WatchedStream(file, self) for name, file in self._watched.items()}
        for name, proxy in self._proxies.items():
            setattr(sys, name, proxy)

    def show(self, now: float, text: str, seconds: float) -> None:
        """Rewrite the line, unless a bar or a half-printed line stands there."""
        with self._lock:
            if self._closed or self._lent or not self._at_line_start or text == self._drawn:
                return
            self._drawn = _cut(text, self._width() - 1)
            self._write(_ERASE + self._drawn)

    def note(self, text: str, seconds: float) -> None:
        """Print a line above, if it took long enough."""
        if seconds >= SECONDS_OF_A_NOTE:
            print(text, file=sys.stderr, flush=True)  # through the bar, if there is one

    def lend_to_bar(self, lent: bool) -> None:
        """Erase the line, and write none as long as a bar stands there."""
        with self._lock:
            self.erase()
            self._lent, self._at_line_start = lent, True

    def before(self, text: str) -> None:
        """Something else prints `text`."""
        with self._lock:
            self.erase()
            if text:
                self._at_line_start = text.endswith("\n")

    def erase(self) -> None:
        """Take the line off the terminal."""
        with self._lock:
            if self._drawn:
                self._write(_ERASE)
                self._drawn = ""

    def close(self) -> None:
        """Erase the line for good, and watch stdout and stderr no more."""
        with self._lock:
            self.erase()
            self._closed = True
        for name, proxy in self._proxies.items():
            if getattr(sys, name) is proxy:
                setattr(sys, name, self._watched[name])

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            return 80


class WatchedStream:
    """A stream that has the live line erased before it prints."""

    def __init__(self, stream: TextIO, line: LiveLine):
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.before(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"
