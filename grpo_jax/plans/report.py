"""A plan in words and as JSON: what each device holds in each stage, what travels, how long a step takes at least."""

from dataclasses import asdict, dataclass
from typing import Any

from grpo_jax.plans.compiled import Found, compiled
from grpo_jax.plans.fitting import fitted
from grpo_jax.plans.planned_run import Subject
from grpo_jax.plans.roofline import Bound, bound
from grpo_jax.setup import memory_budget
from grpo_jax.sharding.mesh import describe
from grpo_jax.sharding.targets import chip_of


@dataclass(frozen=True)
class Stage:
    """A program, and what else the devices hold while it runs."""

    name: str
    found: Found
    beside: int

    @property
    def peak(self) -> int:
        return self.found.peak + self.beside


@dataclass(frozen=True)
class Plan:
    """What is known of a run on a target."""

    subject: Subject
    stages: list[Stage]
    bound: Bound

    @property
    def worst(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        """In every stage, with a reserve for what the allocator cannot join."""
        return self.worst.found.whole and self.worst.peak <= self.subject.usable

    def verdict(self) -> str:
        """One sentence."""
        usable, peak = self.subject.usable, self.worst.peak
        of = f"{sized(peak)} of the {sized(usable)} that may be filled, in the stage `{self.worst.name}`"
        if self.fits:
            return f"fits: at most {of}; {sized(usable - peak)} are left"
        return f"does not fit: {of}; {sized(max(peak - usable, 0))} too much"


def plan_of(subject: Subject) -> Plan:
    """Compile what a step of the run consists of; first, where the run chooses its micro-batch, find it."""
    if subject.config.auto_micro_batch:
        subject = fitted(subject, lambda tried, job: compiled(job, tried.target, tried.mesh))
    stages = [
        Stage(job.name, compiled(job, subject.target, subject.mesh), job.beside) for job in subject.jobs()
    ]
    return Plan(subject, stages, bound(subject))


def parts_of(subject: Subject, stages: list[Stage]) -> dict[str, int]:
    """Bytes on each device by what they are for: counted from shapes; activations are what else the update needs."""
    update = next(stage for stage in stages if stage.name == "update")
    trained = subject.held.get("weights", subject.held.get("adapters", 0))
    rows = subject.size.places * subject.size.rows
    return {
        **subject.held,
        "gradients": trained,
        "activations": max(update.found.temporary - trained, 0),
        "copy of the weights": memory_budget.copy_bytes(subject.policy),
        "cache": subject.demand.cache_bytes(subject.size),
        "logits": rows * subject.cfg.vocab_size * 4 // subject.demand.tensor,
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it, in bytes and seconds."""
    subject, c = plan.subject, plan.subject.config
    return {
        "target": subject.target,
        "device_bytes": chip_of(subject.target).memory,
        "usable_bytes": subject.usable,
        "mesh": describe(dict(subject.mesh.shape)),
        "model": c.model,
        "micro_batch_size": c.micro_batch_size,
        "gradient_checkpointing": c.gradient_checkpointing,
        "rows_at_a_time": subject.rows,
        "fits": plan.fits,
        "peak_bytes": plan.worst.peak,
        "verdict": plan.verdict(),
        "bytes": parts_of(subject, plan.stages),
        "stages": {
            s.name: asdict(s.found) | {"beside": s.beside, "peak_with_beside": s.peak} for s in plan.stages
        },
        "seconds_at_least": asdict(plan.bound) | {"step": plan.bound.step},
    }


def show(plan: Plan) -> None:
    """The tables."""
    from rich.console import Console
    from rich.table import Table

    subject, console = plan.subject, Console()
    shape = describe(dict(subject.mesh.shape))
    memory = sized(chip_of(subject.target).memory)
    head = (
        f"{subject.config.model} on {subject.target}: {subject.mesh.size} devices of {memory}, mesh {shape}"
    )
    console.print(head, soft_wrap=True, highlight=False)
    parts = Table("on each device", "", box=None, pad_edge=False)
    for name, value in parts_of(subject, plan.stages).items():
        if value:
            parts.add_row(name, sized(value))
    stages = Table(
        "stage", "held beside", "arguments", "temporary", "peak", "collectives", box=None, pad_edge=False
    )
    for stage in plan.stages:
        found = stage.found
        moved = ", ".join(f"{kind} {sized(value)}" for kind, value in found.collectives.items()) or "none"
        sizes = [stage.beside, found.arguments, found.temporary, stage.peak]
        cells = (
            [sized(size) for size in sizes] if found.whole else ["", "", "out of memory", sized(stage.peak)]
        )
        stages.add_row(stage.name, *cells, moved)
    console.print(
        parts, "", stages, "", plan.verdict(), _rows(subject), _speed(plan), sep="\n", soft_wrap=True
    )


def _rows(subject: Subject) -> str:
    all_ = subject.config.prompts_per_step * subject.config.num_generations
    return f"completions under way at a time: {subject.rows or all_} of {all_}"


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
)  # on each device, as they are listed


def sized(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"
