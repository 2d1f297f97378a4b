"""The verb `plan`: exit code 0 when the run fits the target, 1 when it does not."""

import json
from pathlib import Path

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.sharding.quiet import prepare


def list_targets() -> int:
    """Print every known chip with the numbers that plans use."""
    from rich.console import Console
    from rich.table import Table

    from grpo_jax.sharding.targets import GPUS, TPUS, chip_of

    table = Table("chip", "memory", "bandwidth", "bfloat16", "e.g.", box=None, pad_edge=False)
    for chip in (*TPUS, *GPUS):
        example = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x4", "tpu7x": "tpu7x:2x2x1"}.get(chip, "")
        example = example or (f"{chip}:2x4" if chip in TPUS else f"{chip}:8")
        found = chip_of(example)
        speeds = f"{found.bandwidth / 1e9:,.0f} GB/s", f"{found.flops / 1e12:,.0f} TFLOP/s"
        table.add_row(chip, f"{found.memory / 2**30:.0f} GiB", *speeds, example)
    Console().print(table, "hosts of GPUs: h100:2x8 is two of eight", sep="\n")
    return 0


def plan_command(config: GRPOConfig, target: str | None, searches: bool, out: str | None) -> int:
    """Plan the run that `config` describes on `target`, print the plan, and write it to `out` if given."""
    if target is None:
        raise UserError("--target: say for which chips, e.g. v5e:2x4 or h100:8; --targets lists them")
    prepare()
    from grpo_jax.plans.planned_run import PlannedRun, shape_of
    from grpo_jax.plans.report import as_json, plan_of, show
    from grpo_jax.plans.search import search

    run = PlannedRun(config, target, shape_of(config.model))
    plan = search(run) if searches else plan_of(run)
    show(plan)
    if searches:
        chosen = plan.run.config
        print(f"mesh: {chosen.mesh}\nmicro_batch_size: {chosen.micro_batch_size}")
        print(f"gradient_checkpointing: {chosen.gradient_checkpointing}")
    if out is not None:
        Path(out).write_text(json.dumps(as_json(plan), indent=2) + "\n", encoding="utf-8")
    return 0 if plan.fits else 1
