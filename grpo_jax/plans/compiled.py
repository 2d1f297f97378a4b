"""A program compiled for a target: its memory and its collectives. What was found is kept for the next time."""

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
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.targets import compiler_options

# How compilers give up for want of memory: by all that a program takes, or by its temporary arrays alone.
_FULL = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")
_TEMPORARY = re.compile(r"RESOURCE_EXHAUSTED.*temporaries \(([\d.]+)([KMG])\)")
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Found:
    """Of one program, on each device, as the compiler reports it."""

    arguments: int  # bytes
    temporary: int
    output: int  # bytes beyond those that are reused from donated arguments
    peak: int  # of the three, or more where the target's compiler gave up for want of memory
    whole: bool  # False: it gave up, and only the peak is known
    collectives: dict[str, int]  # kind -> bytes of results
    seconds: float  # that compiling took


def compiled(job: Job, target: str, mesh: jax.sharding.Mesh) -> Found:
    """Compile `job`, or recall what was found. UserError for what the target's compiler refuses."""
    with jax.set_mesh(mesh):
        lowered = job.program.jit.lower(*job.arguments)
    kept = _cache() / f"{_key(lowered.as_text(), target)}.json"
    if kept.is_file():
        return Found(**json.loads(kept.read_text(encoding="utf-8")))
    found = _compile(lowered, job, target, compiler_options(target))
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(found)), encoding="utf-8")
    fresh.replace(kept)
    return found


def compiled_here(job: Job, mesh: jax.sharding.Mesh) -> Found:
    """The same for the devices that are here; JAX's own cache remembers their programs, where it is on."""
    with jax.set_mesh(mesh):
        lowered = job.program.jit.lower(*job.arguments)
    return _compile(lowered, job, "these devices", {})


def _compile(lowered: jax.stages.Lowered, job: Job, target: str, options: dict[str, Any]) -> Found:
    start = time.perf_counter()
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        peak = needed(str(error), bytes_of(job.arguments))
        if peak is None:
            first = str(error).splitlines()[0]
            raise UserError(
                f"target = {target}: its compiler refuses the program `{job.name}`: {first}"
            ) from None
        return Found(0, 0, 0, peak, False, {}, time.perf_counter() - start)
    seconds, memory, text = time.perf_counter() - start, program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None  # noqa: PT018  (both compilers tell)
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
    collectives = collective_bytes(text, job.trips)
    return Found(
        memory.argument_size_in_bytes, memory.temp_size_in_bytes, output, peak, True, collectives, seconds
    )


def needed(said: str, arguments: int) -> int | None:
    """The bytes that a compiler wanted when it gave up, by what it said; None where it gave up for something else."""
    if full := _FULL.search(said):
        return int(float(full[1]) * _UNIT[full[2]])
    if temporary := _TEMPORARY.search(said):
        return arguments + int(float(temporary[1]) * _UNIT[temporary[2]])
    return None


def _key(text: str, target: str) -> str:
    """Of a program's text, the target and the compilers' versions."""
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
