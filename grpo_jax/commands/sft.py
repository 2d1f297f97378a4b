"""The verb `sft`: supervised fine-tuning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from grpo_jax.config import SFTConfig
from grpo_jax.data.sft.examples import Examples
from grpo_jax.data.sft.mixture import joined as one_dataset
from grpo_jax.data.sft.mixture_entry import entry
from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError
from grpo_jax.learner.optimizer import TrainState
from grpo_jax.runs.metrics import peak_memory
from grpo_jax.runs.progress import closing_table, sample_panel
from grpo_jax.runs.run import Run
from grpo_jax.runs.status import phase
from grpo_jax.setup.learner import lora_of
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.run import open_run
from grpo_jax.setup.status import with_status
from grpo_jax.setup.tokenizer import tokenizer_of
from grpo_jax.setup.weights import export_run, load_base
from grpo_jax.sharding import hosts
from grpo_jax.training.run_state import SFTRunState
from grpo_jax.training.sft_evaluation import save_samples
from grpo_jax.training.sft_trainer import FineTuner, Row

SHOWN = 2
"""Evaluation samples shown on the terminal; the run's folder has all of them."""


@with_status
def sft(config: SFTConfig) -> int:
    """The verb `sft`: train to `max_steps`, from the newest checkpoint in `output_dir` if there is one."""
    model = _blank(config) if config.model == "demo" else config.model
    policy = open_policy(
        config,
        model,
        **tokenizer_of(config.output_dir),
        lora=lora_of(config),
        base_weights=config.base_weights,
    )
    with phase("reading the data"):
        tuner = FineTuner(config, policy, *_load(config))
    with open_run(tuner.config, policy) as run, jax.set_mesh(policy.mesh):
        state, run_state = _train(run, tuner)
        _finish(run, tuner, state, run_state)
    return 0


def _blank(config: SFTConfig) -> Path:
    """Make the tiny random model that `model: demo` stands for, in the run's folder."""
    from grpo_jax.demo.tiny_model import blank_model

    if config.output_dir is None or "://" in config.output_dir:
        raise UserError(
            f"output_dir = {config.output_dir}: sft makes the model 'demo' there; give a local folder, or another model"
        )
    place = Path(config.output_dir)
    if (place / "config.yaml").exists() and not (place / "start").exists():
        raise UserError(f"output_dir = {place}: holds a run of another model than 'demo'; give another one")
    blank_model(place / "start", config.seed)
    return place / "start"


def _load(config: SFTConfig) -> tuple[list[Row], list[Row] | None]:
    """Training rows and held-out rows, with the columns `prompt` and `completion`."""
    columns = config.prompt_column, config.completion_column
    rows = load_rows(config.dataset, config.dataset_split, seed=config.seed)
    more = [entry(one) for one in config.extra_datasets or ()]
    rows = one_dataset(rows, columns, more, config.seed, config.layout)
    if config.eval_dataset is None:
        return rows, None
    held_out = load_rows(config.eval_dataset, config.eval_split, seed=config.seed)
    return rows, one_dataset(held_out, columns, (), config.seed, config.layout)


def _train(run: Run, tuner: FineTuner) -> tuple[TrainState, SFTRunState]:
    tuner.base = load_base(tuner.policy)
    found = run.restore(tuner.abstract_state)
    first, state, saved = found or (0, tuner.start(), {})
    run_state = SFTRunState.from_json(saved)
    if run_state.before is None:
        run_state = replace(run_state, before=_evaluated(run, tuner, state, 0))
    with run.interrupts:
        for step in range(first, run.total):
            state, run_state = _step(run, tuner, state, run_state, step)
    return state, run_state


def _step(
    run: Run, tuner: FineTuner, state: TrainState, run_state: SFTRunState, step: int
) -> tuple[TrainState, SFTRunState]:
    """One step, counted from 0, logged and saved."""
    state, metrics = tuner(state, step)
    run_state = run_state.stepped(metrics)
    metrics["num_tokens"] = run_state.num_tokens
    if _evaluation_is_due(tuner.config, step + 1) and (now := _evaluated(run, tuner, state, step + 1)):
        metrics |= {f"eval/{name}": value for name, value in now["summary"].items()}
        run_state = replace(run_state, after=now)
    run.log(step + 1, metrics | {"peak_memory": peak_memory()[0]})
    run.end_step(step + 1, state, run_state)
    return state, run_state


def _evaluation_is_due(config: SFTConfig, done: int) -> bool:
    return done == config.max_steps or bool(config.eval_steps and done % config.eval_steps == 0)


def _evaluated(run: Run, tuner: FineTuner, state: TrainState, done: int) -> dict[str, Any] | None:
    """Evaluate the state on the held-out rows; print and save the result. None without held-out rows."""
    found = tuner.evaluate(state)
    if found is None:
        return None
    save_samples(run.folder, done, found["samples"])
    run.progress.say(f"step {done}: held-out {_held_out_in_words(found['summary'])}")
    if found["samples"] and hosts.is_writer():
        shown = found["samples"][:SHOWN]
        sample_panel(f"Held-out samples, step {done}", shown, console=run.progress.console)
    return found


def _finish(run: Run, tuner: FineTuner, state: TrainState, run_state: SFTRunState) -> None:
    """Export the model, write the summary, print the closing lines."""
    policy, examples, (memory, source) = tuner.policy, tuner.examples, peak_memory()
    export_run(run, policy, state.params, tuner.config.model)
    before, after = (found and found["summary"] for found in (run_state.before, run_state.after))
    sizes = {
        "steps": run.total,
        "rows": len(examples),
        "rows_dropped": examples.dropped,
        "rows_cut": examples.cut,
    }
    if examples.fill_rate is not None:
        sizes["fill_rate"] = examples.fill_rate
    run.folder.write_summary(
        sizes
        | run_state.to_json()
        | {"before": before, "after": after, "peak_memory": memory, "peak_memory_of": source}
    )
    run.end_progress()
    if hosts.is_writer():
        if before and after:
            closing_table(before, after, title="Held-out rows")
        print(
            f"{run.total} steps on {_rows_in_words(examples)}, {run_state.num_tokens} tokens, "
            f"{run_state.seconds:.0f} s, nll {run_state.nll:.4g}"
        )
        if run.folder.hf.exists():
            print(f"model: {run.folder.hf}")


def _held_out_in_words(summary: dict[str, Any]) -> str:
    lost = {"too long, left out": summary["rows_dropped"], "cut": summary["rows_cut"]}
    losses = "".join(f", {count} {fate}" for fate, count in lost.items() if count)
    return f"perplexity {summary['perplexity']:.4g}, nll {summary['nll']:.4g} over {summary['rows']} rows{losses}"


def _rows_in_words(examples: Examples) -> str:
    cut = f", {examples.cut} cut" if examples.cut else ""
    packed = "" if examples.fill_rate is None else f", packed, {100 * examples.fill_rate:.1f} % full"
    return f"{len(examples)} rows ({examples.dropped} too long, left out{cut}{packed})"
