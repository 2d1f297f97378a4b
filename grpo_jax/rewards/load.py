"""From what the user wrote (`gsm8k`, `my_rewards.py:exact`, a function) to a reward that can be called."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_jax.errors import UserError, nearest
from grpo_jax.rewards import BUILTIN


@dataclass(frozen=True)
class Reward:
    """A reward function under the name its metrics carry.

    `spec` is how another process finds it again: a built-in name or `/absolute/file.py:function`; None for a
    function that was given as an object.
    """

    name: str
    function: Callable[..., Any]
    spec: str | None = None


def load_reward(spec: "str | Callable[..., Any] | Reward") -> Reward:
    """The reward that `spec` means: a built-in name, `file.py:function`, or a function.

    Raises:
        UserError: no such name, file or function; the file fails when imported; it is not a function.
    """
    if isinstance(spec, Reward):
        return spec
    if not isinstance(spec, str):
        _check_callable(spec, repr(spec))
        return Reward(name_of(spec), spec)
    if spec in BUILTIN:
        return Reward(spec, _builtin(spec), spec)
    if ":" in spec or spec.endswith(".py"):
        return _from_file(spec)
    raise UserError(
        f"rewards: nothing is called '{spec}'{nearest(spec, BUILTIN)}; "
        f"built in are {', '.join(sorted(BUILTIN))}; your own is file.py:function"
    )


def _builtin(name: str) -> Callable[..., Any]:
    module, _, function = BUILTIN[name].partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as fault:
        raise UserError(
            f"rewards: '{name}' needs the package {fault.name}, which is not installed"
        ) from fault


def name_of(function: Callable[..., Any]) -> str:
    """The metric name: `__name__`; for a `functools.partial` the inner one; for an object its class."""
    inner = getattr(function, "func", function)
    return getattr(function, "__name__", None) or getattr(inner, "__name__", None) or type(function).__name__


def parameters(function: Callable[..., Any]) -> tuple[set[str], set[str] | None]:
    """(names that must be given, names that may be given); the latter None when there is a `**columns`."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled functions need not tell
        return set(), None
    named = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in named if p.default is p.empty}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in found)
    return required, None if takes_all else {p.name for p in named}


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is an `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _from_file(spec: str) -> Reward:
    file, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    path = Path(file).expanduser().absolute()
    if not name:
        raise UserError(f"rewards: '{spec}' does not say which function; write {spec.rstrip(':')}:function")
    if not path.is_file():
        raise UserError(f"rewards: '{spec}': there is no file {path}")
    module = _import_file(path)
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(f"rewards: {path} has no function '{name}'{nearest(name, public)}")
    function = getattr(module, name)
    _check_callable(function, spec)
    return Reward(name_of(function), function, f"{path}:{name}")


def _import_file(path: Path) -> ModuleType:
    """Run a file as a module. Its folder joins `sys.path`, last: neighbours import, nothing is hidden."""
    name = f"reward_file_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UserError(f"rewards: {path} is not a Python file; write file.py:function")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise UserError(f"rewards: {path} fails when imported: {describe(fault)}") from fault
    return module


def _check_callable(function: Any, written: str) -> None:
    if inspect.isclass(function) or not callable(function):
        raise UserError(f"rewards: {written} is a {type(function).__name__}, not a function; give a function")


def describe(fault: BaseException) -> str:
    """An exception in one short line: type, message, and the deepest line that is the user's own."""
    text = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
    foreign = (os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(__file__)), "<frozen")
    frames = traceback.extract_tb(fault.__traceback__)
    own = [f for f in frames if not f.filename.startswith(foreign) and "site-packages" not in f.filename]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return text[:400] + where
