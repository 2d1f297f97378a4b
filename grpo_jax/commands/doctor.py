"""`grpo-jax doctor`: devices, versions, memory and what is missing, in words.

A check yields findings and prints nothing. The exit code is 0 if training can run here, on the CPU at least.
Requirements are read from package metadata, so that no list is kept twice.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 2**30
MARKS = {"ok": "  ", "note": "! ", "broken": "x "}
PACKAGE = "grpo-jax"
CUDA13_DRIVER = 580  # NVIDIA's oldest driver for CUDA 13; older ones run CUDA 12


@dataclass(frozen=True)
class Finding:
    """One line; `broken` findings make the machine unusable, `note`s want the reader's attention."""

    text: str
    level: str = "ok"  # ok | note | broken


def doctor() -> int:
    """Print every finding; 0 if training can run here, 1 if not."""
    findings = [
        finding for check in (versions, devices, memory, extras, sandbox) for finding in guarded(check)
    ]
    for finding in findings:
        print(MARKS[finding.level] + finding.text)
    broken = any(finding.level == "broken" for finding in findings)
    print("Not usable yet: fix the lines marked x." if broken else "Usable. Try: grpo-jax train demo")
    return int(broken)


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of `check`; a package that it misses is a finding too."""
    try:
        yield from check()
    except ImportError as fault:
        name = (fault.name or str(fault)).partition(".")[0]
        yield Finding(f"{name} is not installed; run: pip install '{name}'", "broken")


# ---- packages ----


def versions() -> Iterator[Finding]:
    """Versions of Python and of what the results depend on; requirements that are not met."""
    yield Finding(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    names = (
        PACKAGE,
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "datasets",
        "numpy",
    )
    yield Finding(", ".join(f"{name} {installed(name) or 'missing'}" for name in names))
    for requirement in unmet(PACKAGE):
        yield Finding(
            f"{requirement} is needed and not installed; run: pip install '{requirement}'", "broken"
        )


def installed(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(package: str, extra: str = "") -> list[str]:
    """Requirements of `package` (with `extra`: those that the extra adds) that are not installed.

    One such as `jax[cuda13]` is followed into jax's own metadata: installing jax alone does not meet it.
    """
    from packaging.requirements import Requirement

    missing = []
    for requirement in map(Requirement, metadata.requires(package) or []):
        if not wanted(requirement, extra) or (extra and wanted(requirement, "")):
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
        else:
            missing += [name for inner in requirement.extras for name in unmet(requirement.name, inner)]
    return missing


def wanted(requirement: Any, extra: str) -> bool:
    """Whether a `packaging` requirement applies on this machine with `extra` (empty: with none)."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def extras() -> Iterator[Finding]:
    """Which optional parts are installed."""
    known = sorted(metadata.metadata(PACKAGE).get_all("Provides-Extra") or [])
    complete = [extra for extra in known if not unmet(PACKAGE, extra)]
    missing = [extra for extra in known if extra not in complete]
    yield Finding(f"extras installed: {', '.join(complete) or 'none'}")
    if missing:
        yield Finding(
            f"extras not installed: {', '.join(missing)}; add one with pip install '{PACKAGE}[NAME]'"
        )


# ---- devices ----


def devices() -> Iterator[Finding]:
    """What JAX can use, tried with one sum; accelerators that are in the machine but not in JAX."""
    try:
        import jax

        found = jax.devices()
        jax.block_until_ready(jax.numpy.ones(8).sum())
    except Exception as fault:  # a plugin may raise anything, and this verb reports it
        yield Finding(f"JAX cannot compute here: {first_line(fault)}{forced()}", "broken")
        yield from unused("")
        return
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    yield Finding(f"JAX computes on {len(found)} x {kinds} (platform {found[0].platform})")
    for device in jax.local_devices():
        if stats := device.memory_stats():
            used, limit = stats.get("bytes_in_use", 0), stats.get("bytes_limit", 0)
            yield Finding(f"device {device.id}: {limit / GIB:.1f} GiB for JAX, {used / GIB:.1f} GiB in use")
    yield from unused(found[0].platform)


def first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), "") or type(fault).__name__


def forced() -> str:
    """A remark when the environment tells JAX which platform to use: often all that is wrong."""
    chosen = os.environ.get("JAX_PLATFORMS")
    return f" (JAX_PLATFORMS={chosen} is set; unset it to let JAX choose)" if chosen else ""


def unused(platform_name: str) -> Iterator[Finding]:
    """Accelerators that the machine shows although JAX runs on `platform_name` (empty: on nothing)."""
    if platform_name not in ("", "cpu"):
        return
    if has_nvidia():
        driver = nvidia_driver()
        extra = "cuda12" if driver and driver < CUDA13_DRIVER else "cuda13"
        seen = f"an NVIDIA GPU{f' (driver {driver})' if driver else ''}"
    elif has_tpu():
        extra, seen = "tpu", "a TPU"
    else:
        yield Finding("no GPU or TPU in this machine; the CPU is enough to learn and to test")
        return
    fix = f"run: pip install '{PACKAGE}[{extra}]'; if that is done, another process may hold it"
    yield Finding(f"this machine has {seen}, but JAX does not use it{forced()}; {fix}", "note")


def has_nvidia(root: Path = Path("/")) -> bool:
    """An NVIDIA GPU's device file or its tool is there."""
    return (root / "dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def has_tpu(root: Path = Path("/")) -> bool:
    """A TPU's device file is there: accel* up to v4, numbered vfio groups from v5 on."""
    return any(root.glob("dev/accel[0-9]*")) or any(root.glob("dev/vfio/[0-9]*"))


def nvidia_driver() -> int | None:
    """The major version of the NVIDIA driver, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(answer.split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


# ---- sandbox ----


def sandbox() -> Iterator[Finding]:
    """The sandbox that this machine offers for the programs of the reward `code`."""
    from grpo_jax.sandbox.select import here

    stands = here()
    level = "note" if "nothing keeps" in stands or stands.startswith("none") else "ok"
    yield Finding(f"programs of the reward code would run with {stands}", level)


# ---- memory ----


def memory() -> Iterator[Finding]:
    """Host memory, what a container leaves of it, and disk."""
    import psutil

    host = psutil.virtual_memory()
    free = f"{host.available / GIB:.1f} of {host.total / GIB:.1f} GiB memory free"
    yield Finding(f"host: {os.cpu_count()} cores, {free}")
    limit = container_limit()
    if limit is not None and limit < host.total:
        yield Finding(f"this container may use {limit / GIB:.1f} GiB of it", "note")
    yield Finding(f"disk: {shutil.disk_usage('.').free / GIB:.1f} GiB free in the current folder")


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the control group (version 2, then 1) allows, or None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((root / name).read_text())
        except (OSError, ValueError):  # absent, or `max`
            continue
    return None
