"""The device mesh: `data` (copies of the model), `fsdp` (weights split, gathered when used), `tensor` (matrices)."""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # rows of a batch are split over both; along `tensor` every device has the same rows


def make_mesh(sizes: dict[str, int] | None = None) -> Mesh:
    """A mesh over this run's devices, by default all of them on `fsdp`.

    Axis types are Auto: the compiler shards what no constraint names (`jax.make_mesh` defaults to Explicit). On one
    host the mesh may be smaller than the number of devices: it uses the first ones.
    """
    devices = jax.devices()
    sizes = sizes if sizes is not None else {"fsdp": len(devices)}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    needed = math.prod(shape)
    if needed > len(devices) or (needed < len(devices) and jax.process_count() > 1):
        raise UserError(
            f"mesh = {describe(sizes)} has {needed} places, but there are {len(devices)} devices; "
            f"choose sizes whose product is {len(devices)}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])


def describe(sizes: dict[str, int]) -> str:
    """The mesh as the setting is written: `data=1,fsdp=8,tensor=1`."""
    return ",".join(f"{axis}={sizes.get(axis, 1)}" for axis in AXES)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the mesh's devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def row_shards(mesh: Mesh) -> int:
    """The number of parts over which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the first dimension over the row axes."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding with a full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_rows(mesh: Mesh, field: str, rows: int) -> None:
    """Raise UserError if the mesh cannot split a number of rows evenly."""
    if rows % row_shards(mesh):
        raise UserError(
            f"{field} = {rows} does not divide over the mesh's {row_shards(mesh)} row shards "
            f"(data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}); use a multiple of {row_shards(mesh)}"
        )
