"""Opens the sandbox that a setting names: `local`, `strict` or a URL."""

import functools
import sys
import warnings
from collections.abc import Callable

from grpo_jax.errors import UserError
from grpo_jax.sandbox.outcome import Outcome, SandboxError

Run = Callable[..., Outcome]
"""`run(code, stdin, limits)`; raises SandboxError."""


@functools.cache
def open_sandbox(name: str) -> Run:
    """The function that runs programs in the sandbox `name`. Runs one empty program to see what this machine permits.

    Args:
        name: `local`: on this machine, behind the walls that the kernel permits, with a warning that names the gaps.
            `strict`: the same, but refused where there are gaps. A URL: on a server (see `remote.py`).

    Raises:
        UserError: there is no such sandbox, or this machine cannot run programs in it.
    """
    if name.startswith(("http://", "https://")):
        from grpo_jax.sandbox.remote import Remote

        return Remote(name).run
    if name not in ("local", "strict"):
        raise UserError(f"sandbox = {name}: write local, strict, or a URL (docs/code_execution.md)")
    from grpo_jax.sandbox.local import run
    from grpo_jax.sandbox.protections import described, open_to

    try:
        walls = run("", strict=name == "strict").walls
    except SandboxError as fault:
        raise UserError(
            f"sandbox = {name}: {fault}; run the sandbox server in a container and give its URL"
        ) from None
    if open_to(walls):
        warnings.warn(f"sandbox = local: {described(walls)}; better run in a container", stacklevel=2)
    return functools.partial(run, strict=name == "strict")


def here() -> str:
    """The walls and gaps of a sandbox on this machine, in one sentence."""
    from grpo_jax.sandbox.local import run
    from grpo_jax.sandbox.protections import described

    try:
        return described(run("").walls)
    except (SandboxError, OSError) as fault:
        return f"none on {sys.platform}: {fault}"
