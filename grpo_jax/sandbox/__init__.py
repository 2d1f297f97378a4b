"""A sandbox: runs one untrusted Python program, with its input, in a process of its own. No jax; Linux first.

`run` and `Limits` run a program on this machine; `open_sandbox` takes the user's setting: `local`, `strict` or a URL.
The walls, from the outside in: namespaces and a file system of its own (`walls.py`), a user of its own, Landlock,
seccomp, and limits. Walls that the kernel refuses are left out and reported (`protections.py`).
docs/code_execution.md says what the sandbox protects against.
"""

from typing import TYPE_CHECKING, Any

_HOME = {
    "Limits": "grpo_jax.sandbox.outcome",
    "Outcome": "grpo_jax.sandbox.outcome",
    "SandboxError": "grpo_jax.sandbox.outcome",
    "open_sandbox": "grpo_jax.sandbox.select",
    "run": "grpo_jax.sandbox.local",
}
__all__ = ["Limits", "Outcome", "SandboxError", "open_sandbox", "run"]

if TYPE_CHECKING:
    from grpo_jax.sandbox.local import run
    from grpo_jax.sandbox.outcome import Limits, Outcome, SandboxError
    from grpo_jax.sandbox.select import open_sandbox


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): a supervisor is started for every program and needs few of these modules."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'grpo_jax.sandbox' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
