"""Compiled programs that count how often they were compiled."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import jax


def unwatched(name: str) -> AbstractContextManager[None]:
    """Nobody looks on while a program is compiled."""
    return nullcontext()


compiling: Callable[[str], AbstractContextManager[None]] = unwatched
"""Entered with a program's name while a call compiles it. `setup/status.py` puts the terminal's here."""


class Program:
    """`jax.jit(function)` with a name and a count: one compilation for each new shape, and `compilations` says so."""

    def __init__(self, name: str, function: Callable, **jit_options: Any):
        self.name = name
        self.compilations = 0
        self._call: ExitStack | None = None  # the call under way

        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            self.compilations += 1  # runs only while JAX traces, that is, once for each new shape
            if self._call:
                self._call.enter_context(compiling(name))
            with jax.named_scope(name):
                return function(*args)

        self.jit = jax.jit(traced, **jit_options)

    def __call__(self, *args: Any) -> Any:
        with ExitStack() as self._call:
            try:
                return self.jit(*args)
            finally:
                self._call = None
