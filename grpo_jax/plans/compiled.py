"""Compiles a program for a target and reports its memory and collectives. Results are cached on disk."""

import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from grpo_jax.errors import UserError
from grpo_jax.plans.hlo import collective_bytes
from grpo_jax.plans.planned_run import Job
from grpo_jax.runs.status import current
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.targets import compiler_options

# The messages of compilers that run out of memory. They state the whole size, or that of the temporaries alone.
_FULL = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")
_TEMPORARY = re.compile(r"RESOURCE_EXHAUSTED.*temporaries \(([\d.]+)([KMG])\)")
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The compiler's report on one program. Sizes are bytes on each device."""

    arguments: int = 0
    temporary: int = 0
    output: int = 0  # without what is written into donated arguments
    peak: int  # the sum of the three; for a program that ran out of memory, what it would have needed
    whole: bool  # False: the compiler ran out of memory, and only `peak` is known
    collectives: dict[str, int]  # kind -> bytes of results
    seconds: float  # compilation time


def compiled(job: Job, target: str, mesh: jax.sharding.Mesh) -> Compilation:
    """Compile `job` for a target, or read the cached result. Raises UserError if the compiler refuses it."""
    with jax.set_mesh(mesh):
        lowered = job.program.jit.lower(*job.arguments)
    kept = _cache() / f"{_key(lowered.as_text(), target)}.json"
    if kept.is_file():
        return Compilation(**json.loads(kept.read_text(encoding="utf-8")))
    found = _compile(lowered, job, target, compiler_options(target))
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(found)), encoding="utf-8")
    fresh.replace(kept)
    return found


def compiled_here(job: Job, mesh: jax.sharding.Mesh) -> Compilation:
    """Compile `job` for this machine's devices. (JAX's own compilation cache applies, if it is on.)"""
    with jax.set_mesh(mesh):
        lowered = job.program.jit.lower(*job.arguments)
    return _compile(lowered, job, "these devices", {})


def _compile(lowered: jax.stages.Lowered, job: Job, target: str, options: dict[str, Any]) -> Compilation:
    start = time.perf_counter()
    try:
        with current().compiling(f"{job.name} for {target}"):
            program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        peak = needed(str(error), bytes_of(job.arguments))
        if peak is None:
            first = str(error).splitlines()[0]
            raise UserError(
                f"target = {target}: its compiler refuses the program `{job.name}`: {first}"
            ) from None
        return Compilation(peak=peak, whole=False, collectives={}, seconds=time.perf_counter() - start)
    seconds, memory, text = time.perf_counter() - start, program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None  # noqa: PT018  (both compilers report them)
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
    collectives = collective_bytes(text, job.trips)
    return Compilation(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        output=output,
        peak=peak,
        whole=True,
        collectives=collectives,
        seconds=seconds,
    )


def needed(message: str, arguments: int) -> int | None:
    """The bytes that a program needs, from the message of a compiler that ran out of memory; None for any other
    message."""
    if full := _FULL.search(message):
        return int(float(full[1]) * _UNIT[full[2]])
    if temporary := _TEMPORARY.search(message):
        return arguments + int(float(temporary[1]) * _UNIT[temporary[2]])
    return None


def _key(text: str, target: str) -> str:
    """Hash of a program's text, the target and the compilers' versions."""
    import importlib.metadata as installed

    versions = [jax.__version__]
    for package in ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            versions.append(installed.version(package))
        except installed.PackageNotFoundError:
            versions.append("none")
    return hashlib.sha256("\n".join([text, target, *versions]).encode()).hexdigest()[:32]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "grpo-jax" / "plans"
