"""The largest micro-batch that fits: `auto_micro_batch`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from jax.sharding import Mesh

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.plans.compiled import Found, compiled_here
from grpo_jax.plans.planned_run import Job, Subject
from grpo_jax.setup.learner import passes_of
from grpo_jax.setup.policy import Policy

_S = TypeVar("_S", bound=Subject)


@dataclass(frozen=True)
class AtHand(Subject):
    """A run on the devices that are here."""

    opened: Policy
    memory: int  # bytes of the smallest of them

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
    """The settings with the micro-batch that `auto_micro_batch` asks for: the largest part of the mini-batch whose
    update fits beside what the devices, of `memory` bytes at least, always hold. The whole, where nobody knows how
    much they have."""
    if memory is None:
        return config.replace(auto_micro_batch=False)
    here = AtHand(config, "these devices", policy.cfg, policy, memory)
    return fitted(here, lambda subject, job: compiled_here(job, subject.mesh)).config


def fitted(subject: _S, compiled: Callable[[_S, Job], Found]) -> _S:
    """The subject with the largest micro-batch whose update fits by compilation. UserError where none does."""
    least = 0
    for rows in micro_batches(subject.config):
        tried = replace(subject, config=subject.config.replace(micro_batch_size=rows, auto_micro_batch=False))
        try:
            job = tried.update()
        except UserError:  # rows that do not divide over the mesh
            continue
        found = compiled(tried, job)
        least = found.peak + job.beside
        if found.whole and least <= tried.usable:
            return tried
        print(f"micro_batch_size {rows}: {least / 2**30:.3g} GiB, too much", file=sys.stderr, flush=True)
    raise UserError(
        f"auto_micro_batch = true: the update does not fit {subject.target}: {least / 2**30:.3g} GiB of "
        f"{subject.usable / 2**30:.3g} GiB with the fewest rows; use more devices, gradient_checkpointing full, "
        "adam_moments bfloat16, or lora_r"
    )


def micro_batches(config: GRPOConfig) -> list[int]:
    """The whole mini-batch, and its halves."""
    mini = passes_of(config).rows(config.prompts_per_step, config.num_generations) // config.num_minibatches
    sizes = [mini]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes
