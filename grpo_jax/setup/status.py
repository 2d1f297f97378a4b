"""Shows what a command is doing."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from grpo_jax import program
from grpo_jax.runs import status
from grpo_jax.runs.status_line import display_for
from grpo_jax.sharding import hosts

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def show_status(quiet: bool) -> Iterator[None]:
    """Show the phases of what is done here on stderr, unless `quiet`. Only the process that prints does so, and within
    another `show_status` that one holds."""
    if program.compiling is not program.unwatched:
        yield
        return
    silent = quiet or not hosts.is_writer()
    try:
        program.compiling = lambda name: status.current().compiling(name)
        with status.use(status.Status(None if silent else display_for(sys.stderr))):
            yield
    finally:
        program.compiling = program.unwatched


def with_status(command: Command) -> Command:
    """A command, whose first argument is its settings, within `show_status`."""

    @functools.wraps(command)
    def shown(config: Any, *given: Any, **named: Any) -> Any:
        with show_status(config.quiet):
            return command(config, *given, **named)

    return shown  # type: ignore[return-value]
