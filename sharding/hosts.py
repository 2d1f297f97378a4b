"""Several hosts: joins the cluster, moves arrays between a host's memory and the mesh, and has the collectives."""

import glob
import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, Sharding
from numpy.typing import ArrayLike

from grpo_jax.errors import UserError
from grpo_jax.sharding.mesh import everywhere

# Variables by which JAX's own detection (jax._src.clusters) finds a cluster: its own, TPU pods, Open MPI; Slurm below.
_CLUSTER_SIGNS = (
    "JAX_COORDINATOR_ADDRESS",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
    "OMPI_MCA_orte_hnp_uri",
)


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other hosts. Must run before devices are used. Without arguments, only if a cluster is detected."""
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together: give all three or none")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise UserError(f"--process_id = {process_id}: give 0 to {num_processes - 1} (--num_processes - 1)")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator = {coordinator}: give host:port, such as 10.0.0.1:8476")
    if all(given):
        # Without detection, because JAX would still read SLURM_LOCALID and give each process a single GPU.
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method="deactivate"
        )
    elif _in_cluster():
        jax.distributed.initialize()


def _in_cluster() -> bool:
    several_tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    signs = [sign for sign in _CLUSTER_SIGNS if os.environ.get(sign) and sign != "TPU_WORKER_HOSTNAMES"]
    return several_tasks or bool(signs) or "," in workers or _on_tpu_vm()


def _on_tpu_vm() -> bool:
    """Whether this is a TPU VM. Only its metadata server knows the slice; joining a slice of one host is harmless."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_writer() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def put(value: np.ndarray, sharding: Sharding) -> Array:
    """A global array from a value that every host holds whole; each host places its own part."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def get(value: Array) -> np.ndarray:
    """A whole global array in this host's memory. Collective if it is split across hosts, so every process must call
    it. For tokens and metrics, not for parameters."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    assert isinstance(value.sharding, NamedSharding)
    assert isinstance(value.sharding.mesh, Mesh)
    return np.asarray(_replicate(value.sharding.mesh)(value))


@cache
def _replicate(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=everywhere(mesh))


def own_share(count: int) -> slice:
    """The contiguous part of `count` prompts that this process scores."""
    here, processes = jax.process_index(), jax.process_count()
    return slice(count * here // processes, count * (here + 1) // processes)


def join_shares(values: np.ndarray, count: int) -> np.ndarray:
    """Concatenate each process's own share of rows, in order, on every process. Collective."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    share = own_share(count)
    whole = np.zeros((count, *values.shape[1:]), values.dtype)
    whole[share] = values
    mine = np.zeros(count, bool)
    mine[share] = True
    everyone = multihost_utils.process_allgather((whole, mine))
    return np.select([m.reshape(-1, *[1] * (values.ndim - 1)) for m in everyone[1]], list(everyone[0]))


def sum_over_processes(counts: ArrayLike) -> np.ndarray:
    """Sums of integer counts over the processes. Collective."""
    if jax.process_count() == 1:
        return np.asarray(counts)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(counts))).sum(0)


def min_over_processes(count: int) -> int:
    """The smallest of the processes' counts, each below 2^31. Collective."""
    if jax.process_count() == 1:
        return count
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.asarray(count, np.int32)).min())


def any_process(flag: bool) -> bool:
    """Whether the flag is true on any process. Collective."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
