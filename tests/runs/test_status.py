"""What is said about what is going on, by a clock that stands still and in a terminal that is none."""

import io
import itertools
import sys
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from grpo_jax.runs import status as module
from grpo_jax.runs.progress import TrainingProgress
from grpo_jax.runs.status import Status, current, duration, phase, size, use
from grpo_jax.runs.status_line import LiveLine, LogLines, display_for

ERASE = "\r\x1b[2K"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What stands on the screen."""
        screen = []
        for line in self.getvalue().split("\n"):
            screen.append(line.rpartition(ERASE)[2])
        return screen


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    """(a status whose lines go to a log, the log)."""
    file = io.StringIO()
    return Status(LogLines(file), clock), file


@contextmanager
def on_terminal(clock):
    """(a status whose line is on a terminal, the terminal): stdout and stderr, as long as this lasts."""
    before, terminal = (sys.stdout, sys.stderr), Terminal()
    sys.stdout = sys.stderr = terminal
    try:
        line = LiveLine(terminal)
        yield Status(line, clock), terminal
        line.close()
        assert sys.stdout is sys.stderr is terminal
    finally:
        sys.stdout, sys.stderr = before


def look_every_second(status, clock, seconds):
    for _ in range(seconds):
        clock.now += 1
        status.look()


# ---- in a log ----


def test_a_log_gets_no_line_for_what_is_short(log, clock):
    status, file = log
    for _ in range(20):
        with status.phase("rollout"):
            look_every_second(status, clock, 29)
    assert file.getvalue() == ""


def test_a_log_gets_a_line_every_thirty_seconds_of_a_long_phase(log, clock):
    status, file = log
    with status.phase("evaluation"):
        status.count(64, 256, "prompts")
        with status.phase("rollout"):
            look_every_second(status, clock, 95)
    assert file.getvalue().splitlines() == [
        f"evaluation, {duration(seconds)}: 64 of 256 prompts; rollout, {duration(seconds)}"
        for seconds in (30, 60, 90)
    ]


def test_a_log_says_how_long_a_compilation_took_in_the_next_line(log, clock):
    status, file = log
    with status.compiling("update"):
        look_every_second(status, clock, 35)
    look_every_second(status, clock, 100)
    assert file.getvalue().splitlines() == [
        "compiling update, 30 s: program 1 so far",
        "compiled update in 35 s",
    ]


@given(st.lists(st.tuples(st.sampled_from(["look", "enter", "leave"]), st.integers(0, 40)), max_size=60))
def test_no_two_lines_of_a_log_are_nearer_than_thirty_seconds(moves):
    clock, file, times, under_way = Clock(), io.StringIO(), [], []
    status = Status(LogLines(file), clock)
    for move, seconds in moves:
        clock.now += seconds
        if move == "enter":
            under_way.append(status.compiling("update"))
            under_way[-1].__enter__()
        elif move == "leave" and under_way:
            under_way.pop().__exit__(None, None, None)
        before = file.getvalue()
        status.look()
        times += [clock.now] * (file.getvalue() != before)
    assert all(later - earlier >= 30 for earlier, later in itertools.pairwise(times))


# ---- on a terminal ----


def test_a_terminal_has_one_line_that_is_rewritten_and_then_gone(clock):
    with on_terminal(clock) as (live, terminal):
        with live.phase("loading weights"):
            live.report("1.2 GiB of 3.1 GiB")
            live.look()
            assert terminal.lines() == [""]
            look_every_second(live, clock, 1)
            assert terminal.lines() == ["loading weights, 1 s: 1.2 GiB of 3.1 GiB"]
            look_every_second(live, clock, 3)
            assert terminal.lines() == ["loading weights, 4 s: 1.2 GiB of 3.1 GiB"]
        live.look()
        assert terminal.lines() == [""]


def test_what_others_print_never_mixes_with_the_line(clock):
    with on_terminal(clock) as (live, terminal), live.phase("rollout"):
        look_every_second(live, clock, 1)
        print("a line")
        live.look()
        print("half", end="", flush=True)
        live.look()
        assert terminal.lines() == ["a line", "half"]
        print(" a line", file=sys.stderr)
        live.look()
        assert terminal.lines() == ["a line", "half a line", "rollout, 1 s"]


def test_rich_tables_on_stdout_erase_the_line_too(clock):
    with on_terminal(clock) as (live, terminal):
        with live.phase("rollout"):
            look_every_second(live, clock, 1)
            Console(width=80).print("a table")
        assert terminal.lines() == ["a table", ""]


def test_a_long_compilation_is_noted_when_it_ends_and_a_short_one_is_not(clock):
    with on_terminal(clock) as (live, terminal):
        with live.compiling("update"):
            look_every_second(live, clock, 62)
        with live.compiling("rows"):
            look_every_second(live, clock, 2)
        live.look()
        assert terminal.lines() == ["compiled update in 1 min 02 s", ""]


def test_a_line_is_cut_at_the_width_of_the_terminal(clock):
    with on_terminal(clock) as (live, terminal):
        with live.phase("x" * 200):
            look_every_second(live, clock, 1)
        (line,) = [part for part in terminal.getvalue().split(ERASE) if part]
        assert len(line) == 79
        assert line.endswith("…")


def test_a_bar_shows_the_status_below_itself_and_gives_the_line_back(clock):
    with on_terminal(clock) as (live, terminal):
        console = Console(file=terminal, width=80, force_terminal=True, color_system=None)
        with use_without_thread(live), TrainingProgress(5, console=console) as progress, phase("rollout"):
            current().count(3, 8, "completions")
            look_every_second(live, clock, 1)
            assert ERASE not in terminal.getvalue()
            progress._bar.refresh()
            assert "rollout, 1 s: 3 of 8 completions" in terminal.getvalue()
        with live.phase("export"):
            look_every_second(live, clock, 1)
        assert f"{ERASE}export, 1 s" in terminal.getvalue()


def test_nothing_is_printed_after_the_end(clock):
    with on_terminal(clock) as (live, terminal):
        with use(live):
            assert current() is live
            with phase("export"):
                look_every_second(live, clock, 1)
        assert current().quiet
        said = terminal.getvalue()
        with live.phase("late"):
            look_every_second(live, clock, 100)
        assert terminal.getvalue() == said


def test_a_process_ends_while_a_status_is_shown():
    """The thread that looks keeps no process alive: a daemon, which the interpreter does not wait for."""
    with use(Status(LogLines(io.StringIO()))):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "status"]
        assert thread.daemon
    assert not thread.is_alive()


def use_without_thread(status):
    """`use`, but that nothing looks by itself."""

    @contextmanager
    def used():
        before, module._current = module._current, status
        yield
        module._current = before

    return used()


# ---- what is said ----


def test_a_quiet_status_keeps_phases_and_says_nothing(clock, capsys):
    status = Status(None, clock)
    with use(status), phase("rollout"):
        current().report("3 of 8")
        look_every_second(status, clock, 100)
        assert status.text() == ""
    assert capsys.readouterr() == ("", "")


def test_a_phase_that_fails_is_over(clock):
    status = Status(LogLines(io.StringIO()), clock)
    with pytest.raises(ValueError, match="no"), status.phase("update"), status.compiling("update"):
        raise ValueError("no")
    assert status.text() == ""


def test_the_time_of_a_phase_is_without_that_of_compilations_inside_it(clock):
    status = Status(LogLines(io.StringIO()), clock)
    with status.phase("rollout"):
        clock.now += 2
        with status.compiling("decode"):
            clock.now += 60
        clock.now += 3
        assert status.seconds == 5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_sizes_in_words():
    assert (size(3 * 2**20), size(3.1 * 2**30)) == ("3 MiB", "3.1 GiB")


def test_a_pipe_and_a_dumb_terminal_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for(Terminal()), LogLines)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display_for(io.StringIO()), LogLines)
    line = display_for(Terminal())
    line.close()
    assert isinstance(line, LiveLine)
