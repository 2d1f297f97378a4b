"""Searches for mesh, micro-batch and checkpointing: the fastest by formula among those whose programs fit."""

import itertools
import math
import sys
from collections.abc import Iterator

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.plans.fitting import micro_batches
from grpo_jax.plans.planned_run import PlannedRun
from grpo_jax.plans.report import Plan, plan_of
from grpo_jax.plans.roofline import bound
from grpo_jax.sharding.targets import topology_mesh

_TRIES = 24  # the most plans to compile
# Relative cost of each kind of checkpointing beyond its operations. Small, to order plans that tie.
_COST = {"none": 1.0, "dots": 1.01, "full": 1.0, "offload": 1.05}


def search(run: PlannedRun) -> Plan:
    """The fastest plan that fits, or the one with the lowest peak if none does."""
    nearest: Plan | None = None
    least: dict[tuple, float] = {}  # (mesh, checkpointing) -> the smallest micro-batch that cannot fit
    for config in itertools.islice(_ordered(run), _TRIES):
        tried, kind = (
            PlannedRun(config, run.target, run.cfg),
            (config.mesh, config.gradient_checkpointing),
        )
        if config.micro_batch_size >= least.get(kind, math.inf):
            continue
        try:
            plan = plan_of(tried)
        except UserError as fault:  # the rows do not divide over the mesh, or a single prompt does not fit
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
            f"target = {run.target}: no mesh divides the rows of this run; change prompts_per_step"
        )
    return nearest


def _hopeless(plan: Plan) -> float:
    """A lower bound on the micro-batches that cannot fit, from a plan that does not fit.

    Temporary memory falls at most in proportion to the rows, as if all of it were activations.
    """
    update = next(phase for phase in plan.phases if phase.name == "update")
    over = update.peak - plan.run.usable
    if not update.compilation.whole or over <= 0:
        return plan.run.config.micro_batch_size
    return plan.run.config.micro_batch_size * max(1 - over / update.compilation.temporary, 0) + 1


def _say(config: GRPOConfig, verdict: str) -> None:
    tried = f"{config.mesh}, micro_batch_size {config.micro_batch_size}"
    print(
        f"{tried}, gradient_checkpointing {config.gradient_checkpointing}: {verdict}",
        file=sys.stderr,
        flush=True,
    )


def _ordered(run: PlannedRun) -> Iterator[GRPOConfig]:
    """Settings to try, the fastest first: large micro-batches before small ones, kept activations before recomputed
    ones, little tensor parallelism before much."""
    candidates = []
    for mesh, remat, micro in itertools.product(_meshes(run), _COST, micro_batches(run.config)):
        config = run.config.replace(
            auto_micro_batch=False, mesh=mesh, gradient_checkpointing=remat, micro_batch_size=micro
        )
        try:
            seconds = bound(PlannedRun(config, run.target, run.cfg)).step
        except (UserError, ValueError):
            continue
        tensor = int(mesh.rpartition("=")[2])
        candidates.append((round(seconds * _COST[remat] * (1 + 0.1 * (tensor - 1)), 3), -micro, config))
    yield from (config for *_, config in sorted(candidates, key=lambda candidate: candidate[:2]))


def _meshes(run: PlannedRun) -> list[str]:
    """All devices on `fsdp`, or 2, 4 or 8 of them on `tensor` if that divides devices and key/value heads."""
    count = topology_mesh(run.target).size
    heads = run.cfg.num_kv_heads
    return [f"fsdp={count // t},tensor={t}" for t in (1, 2, 4, 8) if count % t == 0 and heads % t == 0]
