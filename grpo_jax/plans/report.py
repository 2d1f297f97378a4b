"""A plan as tables and as JSON: memory of each device in each phase, collectives, and a lower bound on the time."""

from dataclasses import asdict, dataclass
from typing import Any

from grpo_jax.plans.compiled import Compilation, compiled
from grpo_jax.plans.fitting import fitted
from grpo_jax.plans.planned_run import PlannedRun
from grpo_jax.plans.roofline import Bound, bound
from grpo_jax.setup import memory_budget
from grpo_jax.sharding.mesh import describe
from grpo_jax.sharding.targets import chip_of


@dataclass(frozen=True)
class Phase:
    """A phase of a step: its compiled program, and the bytes that each device holds beside it."""

    name: str
    compilation: Compilation
    beside: int

    @property
    def peak(self) -> int:
        return self.compilation.peak + self.beside


@dataclass(frozen=True)
class Plan:
    """The compiled phases of a run on a target, and its time bound."""

    run: PlannedRun
    phases: list[Phase]
    bound: Bound

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def fits(self) -> bool:
        """Whether every phase fits, with a reserve for memory lost to fragmentation."""
        return self.worst.compilation.whole and self.worst.peak <= self.run.usable

    def verdict(self) -> str:
        """One sentence that says whether the run fits."""
        usable, peak = self.run.usable, self.worst.peak
        use = f"{sized(peak)} of the {sized(usable)} that may be filled, in the phase `{self.worst.name}`"
        if self.fits:
            return f"fits: at most {use}; {sized(usable - peak)} are left"
        return f"does not fit: {use}; {sized(max(peak - usable, 0))} too much"


def plan_of(run: PlannedRun) -> Plan:
    """Compile the programs of a step. With `auto_micro_batch`, find the micro-batch first."""
    if run.config.auto_micro_batch:
        run = fitted(run, lambda tried, job: compiled(job, tried.target, tried.mesh))
    phases = [Phase(job.name, compiled(job, run.target, run.mesh), job.beside) for job in run.jobs()]
    return Plan(run, phases, bound(run))


def parts_of(run: PlannedRun, phases: list[Phase]) -> dict[str, int]:
    """Bytes on each device by purpose, counted from shapes; activations are what else the update needs."""
    update = next(phase for phase in phases if phase.name == "update")
    trained = run.held.get("weights", run.held.get("adapters", 0))
    rows = run.size.places * run.size.rows
    return {
        **run.held,
        "gradients": trained,
        "activations": max(update.compilation.temporary - trained, 0),
        "copy of the weights": memory_budget.copy_bytes(run.policy),
        "cache": run.demand.cache_bytes(run.size),
        "logits": rows * run.cfg.vocab_size * 4 // run.demand.tensor,
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON, in bytes and seconds."""
    run, c = plan.run, plan.run.config
    return {
        "target": run.target,
        "device_bytes": chip_of(run.target).memory,
        "usable_bytes": run.usable,
        "mesh": describe(dict(run.mesh.shape)),
        "model": c.model,
        "micro_batch_size": c.micro_batch_size,
        "gradient_checkpointing": c.gradient_checkpointing,
        "rows_at_a_time": run.rows,
        "fits": plan.fits,
        "peak_bytes": plan.worst.peak,
        "verdict": plan.verdict(),
        "bytes": parts_of(run, plan.phases),
        "stages": {
            s.name: asdict(s.compilation) | {"beside": s.beside, "peak_with_beside": s.peak}
            for s in plan.phases
        },
        "seconds_at_least": asdict(plan.bound) | {"step": plan.bound.step},
    }


def show(plan: Plan) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    run, console = plan.run, Console()
    shape = describe(dict(run.mesh.shape))
    memory = sized(chip_of(run.target).memory)
    head = f"{run.config.model} on {run.target}: {run.mesh.size} devices of {memory}, mesh {shape}"
    console.print(head, soft_wrap=True, highlight=False)
    parts = Table("on each device", "", box=None, pad_edge=False)
    for name, value in parts_of(run, plan.phases).items():
        if value:
            parts.add_row(name, sized(value))
    phases = Table(
        "phase", "held beside", "arguments", "temporary", "peak", "collectives", box=None, pad_edge=False
    )
    for phase in plan.phases:
        compilation = phase.compilation
        moved = (
            ", ".join(f"{kind} {sized(value)}" for kind, value in compilation.collectives.items()) or "none"
        )
        sizes = [phase.beside, compilation.arguments, compilation.temporary, phase.peak]
        cells = (
            [sized(size) for size in sizes]
            if compilation.whole
            else ["", "", "out of memory", sized(phase.peak)]
        )
        phases.add_row(phase.name, *cells, moved)
    console.print(parts, "", phases, "", plan.verdict(), _rows(run), _speed(plan), sep="\n", soft_wrap=True)


def _rows(run: PlannedRun) -> str:
    all_ = run.config.prompts_per_step * run.config.num_generations
    return f"completions under way at a time: {run.rows or all_} of {all_}"


def _speed(plan: Plan) -> str:
    b = plan.bound
    return (
        f"a step takes at least {b.step:.3g} s at the speeds of the data sheet (rollout {b.rollout:.3g}, score "
        f"{b.score:.3g}, update {b.update:.3g}): at most {b.tokens / b.step:,.0f} sampled tokens a second"
    )


ALWAYS = (
    "weights",
    "frozen weights",
    "adapters",
    "optimizer",
    "reference",
    "reward models",
)
"""What each device holds during the whole run, in the order of the tables."""


def sized(size: float) -> str:
    """Bytes as text with a unit, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"
