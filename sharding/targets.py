"""Targets: chips that are not attached, described well enough to compile for them and to count their memory.

A target is written `chip:topology`. TPUs: `v5e:2x4`, `v5p:2x2x4`, as Google names slices. GPUs: `h100:8`, or `h100:2x8`
for two hosts of eight. Compiling needs the target's compiler (libtpu, JAX's CUDA plugin), which `grpo-jax[plan]`
installs, but not its hardware. Set `JAX_PLATFORMS=cpu`, or JAX also looks for the hardware.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from grpo_jax.errors import UserError, nearest
from grpo_jax.sharding.mesh import AXES, describe
from grpo_jax.sharding.quiet import QUIET

INSTALL = "run: pip install 'grpo-jax[plan]'"


class MissingExtra(UserError):
    """The compiler for a target is not installed."""


@dataclass(frozen=True)
class Chip:
    """A device's peak figures from its data sheet, for time bounds; the compiler does not use them."""

    memory: int  # bytes
    bandwidth: float  # bytes per second, to and from that memory
    flops: float  # operations per second in bfloat16, dense
    link: float  # bytes per second to the other devices, in one direction
    knows_host: bool = True  # whether JAX's description of the device includes the host's memory


# A device in the sense of JAX is a chip; for tpu7x it is half a chip.
TPUS = {
    "v4": Chip(32 << 30, 1.228e12, 275e12, 150e9),
    "v5e": Chip(16 << 30, 0.819e12, 197e12, 100e9),
    "v5p": Chip(95 << 30, 2.765e12, 459e12, 300e9),
    "v6e": Chip(32 << 30, 1.640e12, 918e12, 224e9),
    "tpu7x": Chip(96 << 30, 3.690e12, 1153e12, 300e9),
}
_GPU_SPEED = {
    "a100": (312e12, 300e9),
    "h100": (989e12, 450e9),
    "h200": (989e12, 450e9),
    "b200": (2250e12, 900e9),
}


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as XLA's compiler needs it, from its data sheet and from what the driver reports."""

    name: str
    capability: int  # compute capability, major; the minor is 0 for all of these
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units per multiprocessor
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: int  # bytes per second
    cache: int  # bytes of L2
    shared: int  # KiB of shared memory per multiprocessor; a block may use all but one


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85_100_068_864, 2_039 * 10**9, 40 << 20, 164),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84_978_434_048, 3_352 * 10**9, 50 << 20, 228),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 1.98, 151_397_597_184, 4_800 * 10**9, 50 << 20, 228),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 1.965, 191_514_411_008, 7_672 * 10**9, 126 << 20, 228),
}


def chip_of(target: str) -> Chip:
    """The kind of device in `target`."""
    chip = _parse(target)[0]
    if chip in TPUS:
        return TPUS[chip]
    return Chip(GPUS[chip].memory, GPUS[chip].bandwidth, *_GPU_SPEED[chip], knows_host=False)


def topology_mesh(target: str, sizes: dict[str, int] | None = None) -> Mesh:
    """A mesh over all devices of `target`, for `jit(...).lower(...).compile(compiler_options(target))`.

    `sizes` by axis as in `make_mesh`; by default all devices are on `fsdp`.

    Raises:
        UserError: the target or the sizes are impossible.
        MissingExtra: the target's compiler is not installed.
    """
    chip, topology = _parse(target)
    with _environment(QUIET):
        devices = _tpu_devices(chip, topology) if chip in TPUS else _gpu_devices(GPUS[chip], topology)
    sizes = sizes if sizes is not None else {"fsdp": len(devices)}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh = {describe(sizes)} has {math.prod(shape)} places, but {target} has {len(devices)} devices; "
            f"choose sizes whose product is {len(devices)}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def compiler_options(target: str) -> dict[str, Any]:
    """Options for `compile`: kernels cannot be timed on a GPU that is not attached."""
    return {} if _parse(target)[0] in TPUS else {"xla_gpu_autotune_level": 0}


def _parse(target: str) -> tuple[str, tuple[int, ...]]:
    """`h100:2x8` as ("h100", (2, 8))."""
    chip, _, topology = target.partition(":")
    if chip not in (*TPUS, *GPUS):
        hint = nearest(chip, (*TPUS, *GPUS)) or f"; known: {', '.join((*TPUS, *GPUS))}"
        raise UserError(f"target = {target}: no chip called '{chip}'{hint}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology):
        example = "v5e:2x4" if chip in TPUS else "h100:8"
        raise UserError(f"target = {target}: give chip:topology, such as {example}")
    return chip, tuple(int(n) for n in topology.split("x"))


def _tpu_devices(chip: str, topology: tuple[int, ...]) -> list:
    if not _exists("libtpu"):
        raise MissingExtra(f"target = {chip}: libtpu is not installed; {INSTALL}")
    from jax.experimental import topologies

    name = f"{chip}:{'x'.join(map(str, topology))}"
    options: dict[str, Any] = {}
    if math.prod(topology) == 1:  # all larger topologies have hosts of 2x2
        options["chips_per_host_bounds"] = [1, 1, 1]
    if chip == "v4":  # JAX sees its two cores as one device, as on v5p, whose description states that itself
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"target = {name}: {str(error).splitlines()[0]}") from None


def _gpu_devices(gpu: Gpu, topology: tuple[int, ...]) -> list:
    if not (_exists("jax_plugins") and any(_exists(f"jax_plugins.xla_cuda{n}") for n in (13, 12))):
        raise MissingExtra(f"target = {gpu.name}: JAX's CUDA plugin is not installed; {INSTALL}")
    if len(topology) > 2:
        raise UserError(f"target = {gpu.name}: a GPU topology is devices, or hosts x devices (8 or 2x8)")
    from jax.experimental import topologies

    hosts, per_host = (1, *topology)[-2:]
    described = topologies.get_topology_desc(
        "", "cuda", target_config=_target_config(gpu), topology=f"1x{hosts}x{per_host}"
    )
    return described.devices


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _target_config(gpu: Gpu) -> str:
    """The text form of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto)."""
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "clock_rate_ghz": gpu.clock,
        "memory_bandwidth": gpu.bandwidth,
        "device_memory_size": gpu.memory,
        "l2_cache_size": gpu.cache,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": (gpu.shared - 1) << 10,
        "shared_memory_per_core": gpu.shared << 10,
    }
    fields = " ".join(f"{key}: {value}" for key, value in info.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {gpu.capability} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{gpu.name}"'
    )


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within a `with` block, except those that are set already."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
