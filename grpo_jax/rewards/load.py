"""Loads rewards: a built-in name (`gsm8k`), `my_rewards.py:exact` or a function becomes a `Reward`.

A name may carry options, `boxed_math:think=false`: see `options.py`.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_jax.errors import UserError, nearest
from grpo_jax.rewards import BUILTIN
from grpo_jax.rewards.by_model import PREFIX, column_of, model_of, on_devices
from grpo_jax.rewards.options import BoundFunction, options_of, read_options, split_options
from grpo_jax.rewards.pool.logs import ALWAYS


@dataclass(frozen=True)
class Reward:
    """A reward function and its name.

    name: what its metrics are called.
    function: the function, with its options bound.
    spec: the text from which another process can load it, a built-in name or `/absolute/file.py:function`, with its
        options; None for a function that was given as an object.
    options: the options as the user wrote them.
    model: the folder or hub id of a reward model; None for a function.
    """

    name: str
    function: Callable[..., Any]
    spec: str | None = None
    options: str = ""
    model: str | None = None


def load_reward(spec: "str | Callable[..., Any] | Reward") -> Reward:
    """The reward for `spec`: a built-in name or `file.py:function`, with or without options, a reward model
    (`model:FOLDER`), or a function.

    Raises:
        UserError: there is no such name, file, function or option; the file fails when imported; or it is not a
            function.
    """
    if isinstance(spec, Reward):
        return spec
    if not isinstance(spec, str):
        _check_callable(spec, repr(spec))
        return Reward(name_of(spec), spec)
    if spec.startswith(PREFIX):
        model = model_of(spec)
        return Reward(column_of(model), on_devices, PREFIX + model, model=model)
    reward, options = split_options(spec)
    name, _, wrong = reward.partition(":")
    if name in BUILTIN:
        function = _with_options(spec, _builtin(name), options or wrong, builtin=True)
        return Reward(name, function, f"{name}:{options}" if options else name, options)
    if ":" in reward or reward.endswith(".py"):
        found = _from_file(reward)
        function = _with_options(spec, found.function, options)
        written = f"{found.spec}:{options}" if options else found.spec
        return replace(found, function=function, spec=written, options=options)
    raise UserError(
        f"rewards: nothing is called '{reward}'{nearest(reward, BUILTIN)}; "
        f"built in are {', '.join(sorted(BUILTIN))}; your own is file.py:function, a reward model model:FOLDER"
    )


def named_apart(rewards: Sequence[Reward]) -> list[Reward]:
    """The same rewards with names that differ: where two share one, it is extended by the options or the whole name
    of the model.

    Raises:
        UserError: two still have the same name.
    """
    names = [reward.name for reward in rewards]
    whole = lambda r: f"{r.name}:{r.options}" if r.options else r.model or r.name
    full = lambda r: whole(r) if names.count(r.name) > 1 else r.name
    apart = [replace(reward, name=full(reward)) for reward in rewards]
    names = [reward.name for reward in apart]
    if double := {name for name in names if names.count(name) > 1}:
        raise UserError(f"rewards: two functions are called '{min(double)}'; give one another __name__")
    return apart


def _builtin(name: str) -> Callable[..., Any]:
    module, _, function = BUILTIN[name].partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as fault:
        raise UserError(
            f"rewards: '{name}' needs the package {fault.name}, which is not installed"
        ) from fault


def _with_options(
    spec: str, function: Callable[..., Any], text: str, builtin: bool = False
) -> Callable[..., Any]:
    """The function with the options in `text`. Those of a built-in function are all bound, at their defaults too, and
    checked."""
    known = options_of(function)
    values = read_options(spec, text, known)
    bound = {name: option.default for name, option in known.items() if builtin} | values
    if not bound:
        return function
    made = BoundFunction(function, **bound)
    if builtin:
        _check_range(spec, made)
    return made


def _check_range(spec: str, function: BoundFunction) -> None:
    """Raise UserError when a built-in function refuses its options. A call with no rows shows that."""
    try:
        columns = inspect.signature(function.func).parameters.values()
        function(**{p.name: [] for p in columns if p.kind is not p.VAR_KEYWORD and p.name not in ALWAYS})
    except ValueError as fault:
        raise UserError(f"rewards: '{spec}': {fault}") from None


def name_of(function: Callable[..., Any]) -> str:
    """The metric name: `__name__`, that of the inner function of a `functools.partial`, or an object's class."""
    inner = getattr(function, "func", function)
    return getattr(function, "__name__", None) or getattr(inner, "__name__", None) or type(function).__name__


def is_foreign(reward: Reward) -> bool:
    """Whether a function was given as an object, and is none of this package's own."""
    inner = getattr(reward.function, "func", reward.function)
    module = getattr(inner, "__module__", None) or type(inner).__module__
    return reward.spec is None and module.partition(".")[0] != __name__.partition(".")[0]


def parameters(function: Callable[..., Any]) -> tuple[set[str], set[str] | None]:
    """(required parameter names, all parameter names); the latter is None if the function takes `**columns`."""
    try:
        signature = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a compiled function may have no signature
        return set(), None
    named = [p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in named if p.default is p.empty}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature)
    return required, None if takes_all else {p.name for p in named}


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has a parameter of this name; `**columns` does not count."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def is_async(function: Callable[..., Any]) -> bool:
    """Whether the function is an `async def`, or an object whose `__call__` is one."""
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
    """Run a file as a module. Its folder is appended to `sys.path`, so that it can import the files beside it."""
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
    """An exception in one short line: its type, message, and the deepest line of the user's own code."""
    text = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
    foreign = (os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(__file__)), "<frozen")
    frames = traceback.extract_tb(fault.__traceback__)
    own = [f for f in frames if not f.filename.startswith(foreign) and "site-packages" not in f.filename]
    location = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return text[:400] + location
