"""Finds the largest micro-batch that fits, for `auto_micro_batch`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from jax.sharding import Mesh

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.plans.compiled import Compilation, compiled_here
from grpo_jax.plans.planned_run import Job, PlannedRun
from grpo_jax.setup.learner import passes_of
from grpo_jax.setup.policy import Policy

_S = TypeVar("_S", bound=PlannedRun)


@dataclass(frozen=True)
class LocalRun(PlannedRun):
    """A run on this machine's devices."""

    opened: Policy
    memory: int  # bytes of the smallest device

    @property
    def mesh(self) -> Mesh:  # type: ignore[override]
        return self.opened.mesh

    @property
    def policy(self) -> Policy:  # type: ignore[override]
        return self.opened

    @property
    def device_bytes(self) -> int:
        return self.memory


def with_micro_batch(config: GRPOConfig, policy: Policy, memory: int | None) -> GRPOConfig:
    """The settings with the largest micro-batch whose update fits beside what the devices always hold.

    `memory` is the size of the smallest device, in bytes. If it is None (CPU), the micro-batch is the mini-batch.
    """
    if memory is None:
        return config.replace(auto_micro_batch=False)
    here = LocalRun(config, "these devices", policy.cfg, policy, memory)
    return fitted(here, lambda run, job: compiled_here(job, run.mesh)).config


def fitted(run: _S, compiled: Callable[[_S, Job], Compilation]) -> _S:
    """The run with the largest micro-batch whose compiled update fits. Raises UserError if none does."""
    least = 0
    for rows in micro_batches(run.config):
        tried = replace(run, config=run.config.replace(micro_batch_size=rows, auto_micro_batch=False))
        try:
            job = tried.update()
        except UserError:  # rows that do not divide over the mesh
            continue
        compilation = compiled(tried, job)
        least = compilation.peak + job.beside
        if compilation.whole and least <= tried.usable:
            return tried
        print(f"micro_batch_size {rows}: {least / 2**30:.3g} GiB, too much", file=sys.stderr, flush=True)
    raise UserError(
        f"auto_micro_batch = true: the update does not fit {run.target}: {least / 2**30:.3g} GiB of "
        f"{run.usable / 2**30:.3g} GiB with the fewest rows; use more devices, gradient_checkpointing full, "
        "adam_moments bfloat16, optim adafactor, or lora_r"
    )


def micro_batches(config: GRPOConfig) -> list[int]:
    """Candidate sizes: the mini-batch, its half, quarter, ... as far as they divide."""
    mini = passes_of(config).rows(config.prompts_per_step, config.num_generations) // config.num_minibatches
    sizes = [mini]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes
