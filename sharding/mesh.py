"""The device mesh: `data` (copies of the model), `fsdp` (weights split, gathered when used), `tensor` (matrices)."""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # rows of a batch are split over both; `tensor` sees every row


def make_mesh(sizes: dict[str, int] | None = None) -> Mesh:
    """A mesh over the devices at hand, by default all of them on `fsdp`.

    Axis types are Auto: the compiler places what no constraint names (`jax.make_mesh` defaults to Explicit).
    Fewer places than devices is allowed on one host: the first devices are used.
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
    """`data=1,fsdp=8,tensor=1`, as the setting is written."""
    return ",".join(f"{axis}={sizes.get(axis, 1)}" for axis in AXES)


def on_cpu(mesh: Mesh) -> bool:
    """Whether its devices are processors."""
    return mesh.devices.flat[0].platform == "cpu"


def row_shards(mesh: Mesh) -> int:
    """Over how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def by_rows(mesh: Mesh) -> NamedSharding:
    """First axis split over the row axes, the others whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_rows(mesh: Mesh, field: str, rows: int) -> None:
    """Refuse a number of rows that the mesh cannot split evenly."""
    if rows % row_shards(mesh):
        raise UserError(
            f"{field} = {rows} does not divide over the mesh's {row_shards(mesh)} row shards "
            f"(data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}); use a multiple of {row_shards(mesh)}"
        )
