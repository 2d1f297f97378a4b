"""Compiled programs that count how often they were compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """`jax.jit(function)` with a name and a count: one compilation for each new shape, and `compilations` says so."""

    def __init__(self, name: str, function: Callable, **jit_options: Any):
        self.name = name
        self.compilations = 0

        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            self.compilations += 1  # runs only while JAX traces, that is, once for each new shape
            with jax.named_scope(name):
                return function(*args)

        self.jit = jax.jit(traced, **jit_options)

    def __call__(self, *args: Any) -> Any:
        return self.jit(*args)
