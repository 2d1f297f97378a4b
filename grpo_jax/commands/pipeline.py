"""The verb `pipeline`: say what will be done, do what is not done yet, say what was done."""

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.pipelines.checking import check_steps
from grpo_jax.pipelines.record import Record
from grpo_jax.pipelines.step_outcome import in_words
from grpo_jax.pipelines.steps import Pipeline, Step, load_pipeline
from grpo_jax.runs.folder import RunFolder


def pipeline_command(
    source: str,
    *,
    output_dir: str | None = None,
    tiny: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    hosts: tuple[Any, ...] = (None, None, None),
) -> int:
    """Run the steps of a pipeline that are not finished. The same command goes on where another was killed."""
    pipeline = load_pipeline(source, output_dir, tiny)
    record = Record(pipeline)
    if dry_run:
        _show_plan(pipeline, record)
    _check(pipeline, record)
    if dry_run:
        return 0
    from grpo_jax.sharding.hosts import initialize, is_writer

    initialize(*hosts)
    with ExitStack() as held:
        if quiet:  # else each step by its own setting
            held.enter_context(_show_status(quiet))
        if is_writer():
            held.enter_context(RunFolder(pipeline.output_dir)).lock()
            record = Record(pipeline)  # another process may have ended a step before we had the lock
            _show_plan(pipeline, record)
        if pipeline.blank is not None:
            from grpo_jax.demo.tiny_model import blank_model

            blank_model(Path(pipeline.blank))
        for step in pipeline.steps:
            if record.state(step) != "finished":
                _run(step, record, len(pipeline.steps), writes=is_writer())
        if is_writer():
            _show_outcome(pipeline, record)
    return 0


def _show_status(quiet: bool) -> AbstractContextManager[None]:
    from grpo_jax.setup.status import show_status  # loads jax

    return show_status(quiet)


def _check(pipeline: Pipeline, record: Record) -> None:
    """UserError where a step that is not finished could not run."""
    made = [path for step in pipeline.steps for path in step.outputs.values()]
    check_steps((step for step in pipeline.steps if record.state(step) != "finished"), made)


def _run(step: Step, record: Record, count: int, *, writes: bool) -> None:
    if writes:
        print(f"\n== step {step.number}/{count}: {step.name} ({step.verb}), in {step.folder}", flush=True)
    started, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.perf_counter()
    try:
        _by_itself(lambda: _verb(step.verb)(step.config))
    except UserError as fault:
        raise UserError(f"step {step.name}: {fault}") from None
    if lost := next((path for path in step.outputs.values() if not Path(path).exists()), None):
        raise UserError(f"step {step.name}: it ended without {lost}, which others read; see what it said")
    record.add(step, started, time.perf_counter() - clock, in_words(step), write=writes)


def _by_itself(work: Callable[[], Any]) -> None:
    """A step is what its verb would be in a process of its own: what it sets in JAX ends with it, and its programs
    make room for those of the next."""
    import jax

    before = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    try:
        work()
    finally:
        jax.config.update("jax_default_matmul_precision", before)
        jax.clear_caches()
        gc.collect()


def _verb(name: str) -> Callable[[Any], int]:
    if name == "sft":
        from grpo_jax.commands.sft import sft

        return sft
    if name == "train":
        from grpo_jax.commands.train import train

        return train
    if name == "reject":
        from grpo_jax.commands.reject import reject_command

        return reject_command
    from grpo_jax.commands.evaluate import evaluate_command

    return evaluate_command


def _show_plan(pipeline: Pipeline, record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "step", "verb", "reads", "length", "state", title=f"{pipeline.name}: what is to be done"
    )
    for column in table.columns:
        column.overflow = "fold"
    for step in pipeline.steps:
        reads, state = "\n".join(step.reads), record.state(step)
        table.add_row(str(step.number), step.name, step.verb, reads, _length(step.config), state)
    Console().print(table)
    print(
        f"each in a folder of its own in {pipeline.output_dir}, such as {Path(pipeline.steps[0].folder).name}"
    )


def _length(config: Any) -> str:
    """How much a step does."""
    if getattr(config, "num_train_epochs", None) is not None:
        return f"{config.num_train_epochs:g} epochs"
    if hasattr(config, "max_steps"):
        return f"{config.max_steps} steps"
    return f"{config.prompts or 'all'} prompts x {config.samples}"


def _show_outcome(pipeline: Pipeline, record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "step", "result", "seconds", title=f"{pipeline.name}: what was done")
    for step in pipeline.steps:
        entry = record.steps[step.name]
        table.add_row(str(step.number), step.name, entry["result"], f"{entry['seconds']:.0f}")
    Console().print(table)
    print(f"steps: {record.file}")
    for name, path in pipeline.steps[-1].outputs.items():
        print(f"{name}: {path}")
