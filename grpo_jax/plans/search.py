"""Which mesh, micro-batch and checkpointing to take: the fastest by formula of those that fit by compilation."""

import itertools
import math
import sys
from collections.abc import Iterator

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.plans.fitting import micro_batches
from grpo_jax.plans.planned_run import Subject
from grpo_jax.plans.report import Plan, plan_of
from grpo_jax.plans.roofline import bound
from grpo_jax.sharding.targets import topology_mesh

_TRIES = 24  # plans that are compiled at most
# What keeping or moving activations costs beside the operations, a little: it puts in order what ties.
_COST = {"none": 1.0, "dots": 1.01, "full": 1.0, "offload": 1.05}


def search(subject: Subject) -> Plan:
    """The best plan that fits, else the one that is nearest to it."""
    nearest: Plan | None = None
    least: dict[tuple, float] = {}  # (mesh, checkpointing) -> micro-batches from here up are hopeless
    for config in itertools.islice(_ordered(subject), _TRIES):
        tried, kind = (
            Subject(config, subject.target, subject.cfg),
            (config.mesh, config.gradient_checkpointing),
        )
        if config.micro_batch_size >= least.get(kind, math.inf):
            continue
        try:
            plan = plan_of(tried)
        except UserError as fault:  # rows that do not divide, no room for one prompt
            _say(config, str(fault))
            continue
        _say(config, plan.verdict())
        if plan.fits:
            return plan
        least[kind] = _hopeless(plan)
        if nearest is None or plan.worst.peak < nearest.worst.peak:
            nearest = plan
    if nearest is None:
        raise UserError(
            f"target = {subject.target}: no mesh divides the rows of this run; change prompts_per_step"
        )
    return nearest


def _hopeless(plan: Plan) -> float:
    """The micro-batch from which on none can fit, by a plan that does not: if all that the update needs were
    activations, it would fall with the rows; what of it is not, does not fall at all."""
    update = next(stage for stage in plan.stages if stage.name == "update")
    over = update.peak - plan.subject.usable
    if not update.found.whole or over <= 0:
        return plan.subject.config.micro_batch_size
    return plan.subject.config.micro_batch_size * max(1 - over / update.found.temporary, 0) + 1


def _say(config: GRPOConfig, what: str) -> None:
    tried = f"{config.mesh}, micro_batch_size {config.micro_batch_size}"
    print(
        f"{tried}, gradient_checkpointing {config.gradient_checkpointing}: {what}",
        file=sys.stderr,
        flush=True,
    )


def _ordered(subject: Subject) -> Iterator[GRPOConfig]:
    """Settings to try, the fastest first: whole micro-batches before smaller ones, activations kept before recomputed,
    little tensor parallelism before much."""
    found = []
    for mesh, remat, micro in itertools.product(_meshes(subject), _COST, micro_batches(subject.config)):
        how = {"mesh": mesh, "gradient_checkpointing": remat, "micro_batch_size": micro}
        config = subject.config.replace(auto_micro_batch=False, **how)
        try:
            seconds = bound(Subject(config, subject.target, subject.cfg)).step
        except (UserError, ValueError):
            continue
        tensor = int(mesh.rpartition("=")[2])
        found.append((round(seconds * _COST[remat] * (1 + 0.1 * (tensor - 1)), 3), -micro, config))
    yield from (config for *_, config in sorted(found, key=lambda one: one[:2]))


def _meshes(subject: Subject) -> list[str]:
    """All devices on `fsdp`, or some of them on `tensor`: as many as divide the key and value heads."""
    count = topology_mesh(subject.target).size
    heads = subject.cfg.num_kv_heads
    return [f"fsdp={count // t},tensor={t}" for t in (1, 2, 4, 8) if count % t == 0 and heads % t == 0]
