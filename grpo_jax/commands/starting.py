"""Says that a command is starting while its modules are imported and its devices are found, which takes seconds."""

import argparse
import sys
from contextlib import AbstractContextManager, ExitStack

from grpo_jax.runs import status
from grpo_jax.runs.status_line import display_for


def starting(args: argparse.Namespace) -> AbstractContextManager[object]:
    """The phase `starting`. On a terminal only: until the devices are found, no process knows whether it is the one
    that prints, and those of many hosts have none."""
    stack = ExitStack()
    if sys.stderr.isatty() and args.quiet in (None, False, "false"):
        stack.enter_context(status.use(status.Status(display_for(sys.stderr))))
        stack.enter_context(status.phase("starting"))
    return stack
