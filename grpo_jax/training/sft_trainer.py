"""Supervised fine-tuning, the verb `sft`: rows -> update -> (checkpoint, report, export). The demo's cold start
uses the same `FineTuner`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.config import SFTConfig
from grpo_jax.data.sft.examples import ExampleBatch, Examples, PackedBatch
from grpo_jax.data.sft.mixture import joined as one_dataset
from grpo_jax.data.sft.mixture_entry import entry
from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError
from grpo_jax.learner.logprobs import Rows, Scoring, make_rows
from grpo_jax.learner.objective import SFT, Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state, init_state
from grpo_jax.learner.update import make_update, read
from grpo_jax.models.lora import Base
from grpo_jax.models.lora import joined as whole_model
from grpo_jax.program import Program
from grpo_jax.runs.metrics import peak_memory
from grpo_jax.runs.progress import closing_table, sample_panel
from grpo_jax.runs.run import Run, Stopwatch
from grpo_jax.setup.learner import lora_of, optimizer_of, schedule_of
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.weights import export_run, load_base, load_trained
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, check_rows
from grpo_jax.training.assembly import open_run
from grpo_jax.training.sft_evaluation import HeldOut, perplexity, save_samples

Row = dict[str, Any]

SHOWN = 2
"""Samples of an evaluation that the terminal shows; the run's folder has all."""


class FineTuner:
    """The mean negative log-likelihood of completions, minimised a batch a step. Holds data and programs, no
    state; call it inside the policy's mesh. UserError for rows that cannot be used or do not fit the mesh."""

    def __init__(self, config: SFTConfig, policy: Policy, rows: list[Row], held_out: list[Row] | None = None):
        policy.check_positions("max_length", config.max_length)
        check_rows(policy.mesh, "rows_per_step", config.rows_per_step)
        micro = config.micro_batch_size or config.rows_per_step
        check_rows(policy.mesh, "micro_batch_size", micro)
        self.policy, self.examples, self.seed = policy, _examples(config, policy, rows), config.seed
        if config.num_train_epochs is not None:
            steps = self.examples.steps_for(config.num_train_epochs)
            config = config.replace(num_train_epochs=None, max_steps=steps)
        self.config = config
        self.base: Base | None = None
        schedule = schedule_of(config)
        optimizer = optimizer_of(config, schedule)
        self.learning_rate = schedule.build()
        self.abstract_state = abstract_state(policy.abstract_trained(), optimizer, policy.mesh)
        where = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        self.init = Program(
            "init", lambda params: init_state(params, optimizer), donate_argnums=0, out_shardings=where
        )
        self.batch = Program("batches", _packed_batch if config.packing else _batch)
        how = Scoring(
            num_tokens=policy.vocabulary.num_tokens,
            dtype=policy.dtype,
            chunk=config.logprob_chunk,
            remat=config.gradient_checkpointing,
            attention=policy.attention,
        )
        micro_batches = config.rows_per_step // micro
        self.update = make_update(policy.cfg, SFT(), how, optimizer, micro_batches, where, policy.mesh)
        self.held_out = _held_out(config, policy, held_out, how) if held_out else None

    def start(self) -> TrainState:
        """The state before the first update."""
        return self.init(load_trained(self.policy, self.seed))

    def __call__(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """The update of a step, counted from 0; `state` is donated."""
        clock, rows = Stopwatch(), self.examples(step)
        state, metrics = self.update(state, self.batch(*self._on_devices(rows)), self.base)
        values = read(metrics)
        learned = int(rows.mask.sum())
        return state, {
            **values,
            "perplexity": perplexity(values["nll"]),
            "learning_rate": float(self.learning_rate(step)),
            "num_tokens": rows.tokens,
            "rows": rows.rows,
            **({"fill_rate": rows.fill_rate} if isinstance(rows, PackedBatch) else {}),
            "step_time": clock.total(),
            "tokens_per_second": learned / clock.total(),
            "compilations/update": self.update.compilations,
        }

    def evaluate(self, state: TrainState) -> dict[str, Any] | None:
        """`summary` and `samples` of the held-out rows; None without them."""
        return None if self.held_out is None else self.held_out(whole_model(state.params, self.base))

    def _on_devices(self, rows: ExampleBatch | PackedBatch) -> tuple:
        arrays: tuple = rows.completions, rows.mask
        if isinstance(rows, PackedBatch):
            arrays += rows.sequences, rows.segments, rows.before
        else:
            arrays += rows.prompts, rows.prompt_lengths
        return tuple(hosts.put(x, by_rows(self.policy.mesh)) for x in arrays)


def _examples(config: SFTConfig, policy: Policy, rows: list[Row], packing: bool | None = None) -> Examples:
    packed = config.packing if packing is None else packing
    return Examples(
        rows,
        policy.tokenizer,
        rows_per_step=config.rows_per_step,
        max_length=config.max_length,
        eos_id=policy.vocabulary.eos_ids[0],
        pad_id=policy.vocabulary.pad_id,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
        system_prompt=config.system_prompt,
        chat_template_kwargs=config.chat_template_kwargs,
        packing=config.packing_strategy if packed else None,
        long_rows=config.long_rows,
    )


def _held_out(config: SFTConfig, policy: Policy, rows: list[Row], how: Scoring) -> HeldOut:
    """A row each: each is looked at once, so that little would be won by packing them."""
    rows = rows[: config.eval_rows or None]
    try:
        return HeldOut(config, policy, rows, _examples(config, policy, rows, packing=False), how)
    except UserError as fault:
        raise UserError(f"eval_dataset: {fault}") from None


def _batch(completions: Array, mask: Array, prompts: Array, lengths: Array) -> Batch:
    rows = make_rows(prompts, lengths, completions, mask)
    return Batch(rows, advantages=jnp.zeros(len(lengths)))


def _packed_batch(completions: Array, mask: Array, sequences: Array, segments: Array, before: Array) -> Batch:
    nothing = jnp.zeros(len(sequences), jnp.int32)
    rows = Rows(sequences, nothing, completions, mask, segments, before)
    return Batch(rows, advantages=jnp.zeros(len(sequences)))


def sft(config: SFTConfig) -> int:
    """The verb `sft`: train to `max_steps`, from the newest checkpoint in `output_dir` if there is one."""
    model = _blank(config) if config.model == "demo" else config.model
    policy = open_policy(config, model, lora=lora_of(config), base_weights=config.base_weights)
    tuner = FineTuner(config, policy, *_load(config))
    with open_run(tuner.config, policy) as run, jax.set_mesh(policy.mesh):
        state, notes = _train(run, tuner)
        _finish(run, tuner, state, notes)
    return 0


def _blank(config: SFTConfig) -> Path:
    """The tiny model of random weights that `model: demo` means here, kept beside the run that begins with it."""
    from grpo_jax.demo.cold_start import blank_model

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
    """Rows to learn and held-out rows, all with the columns `prompt` and `completion`."""
    columns = config.prompt_column, config.completion_column
    rows = load_rows(config.dataset, config.dataset_split, seed=config.seed)
    more = [entry(one) for one in config.extra_datasets or ()]
    rows = one_dataset(rows, columns, more, config.seed, config.layout)
    if config.eval_dataset is None:
        return rows, None
    held_out = load_rows(config.eval_dataset, config.eval_split, seed=config.seed)
    return rows, one_dataset(held_out, columns, (), config.seed, config.layout)


def _train(run: Run, tuner: FineTuner) -> tuple[TrainState, dict[str, Any]]:
    tuner.base = load_base(tuner.policy)
    found = run.restore(tuner.abstract_state)
    first, state, notes = found or (0, tuner.start(), {"num_tokens": 0, "seconds": 0.0})
    if "before" not in notes:
        notes["before"] = _evaluated(run, tuner, state, 0)
    for step in range(first, run.total):
        state, metrics = tuner(state, step)
        notes["seconds"] += metrics["step_time"]
        notes["num_tokens"] = metrics["num_tokens"] = notes["num_tokens"] + metrics["num_tokens"]
        notes["nll"] = metrics["nll"]
        if _evaluation_is_due(tuner.config, step + 1) and (now := _evaluated(run, tuner, state, step + 1)):
            metrics |= {f"eval/{name}": value for name, value in now["summary"].items()}
            notes["after"] = now
        run.log(step + 1, metrics | {"peak_memory": peak_memory()[0]})
        run.end_step(step + 1, state, notes)
    return state, notes


def _evaluation_is_due(config: SFTConfig, done: int) -> bool:
    return done == config.max_steps or bool(config.eval_steps and done % config.eval_steps == 0)


def _evaluated(run: Run, tuner: FineTuner, state: TrainState, done: int) -> dict[str, Any] | None:
    """What the held-out rows say of the state, shown and kept."""
    found = tuner.evaluate(state)
    if found is None:
        return None
    save_samples(run.folder, done, found["samples"])
    if run.progress is not None:
        run.progress.say(f"step {done}: held-out {_held_out_in_words(found['summary'])}")
        if found["samples"] and hosts.is_writer():
            shown = found["samples"][:SHOWN]
            sample_panel(f"Held-out samples, step {done}", shown, console=run.progress.console)
    return found


def _finish(run: Run, tuner: FineTuner, state: TrainState, notes: dict[str, Any]) -> None:
    """Export, summary, closing lines."""
    policy, examples, (memory, where) = tuner.policy, tuner.examples, peak_memory()
    export_run(run, policy, state.params, tuner.config.model)
    before, after = (found and found["summary"] for found in (notes["before"], notes.get("after")))
    sizes = {
        "steps": run.total,
        "rows": len(examples),
        "rows_dropped": examples.dropped,
        "rows_cut": examples.cut,
    }
    if examples.fill_rate is not None:
        sizes["fill_rate"] = examples.fill_rate
    run.folder.write_summary(
        sizes | notes | {"before": before, "after": after, "peak_memory": memory, "peak_memory_of": where}
    )
    run.end_progress()
    if hosts.is_writer():
        if before and after:
            closing_table(before, after, title="Held-out rows")
        print(
            f"{run.total} steps on {_rows_in_words(examples)}, {notes['num_tokens']} tokens, "
            f"{notes['seconds']:.0f} s, nll {notes['nll']:.4g}"
        )
        if run.folder.hf.exists():
            print(f"model: {run.folder.hf}")


def _held_out_in_words(summary: dict[str, Any]) -> str:
    lost = {"too long, left out": summary["rows_dropped"], "cut": summary["rows_cut"]}
    told = "".join(f", {count} {how}" for how, count in lost.items() if count)
    return (
        f"perplexity {summary['perplexity']:.4g}, nll {summary['nll']:.4g} over {summary['rows']} rows{told}"
    )


def _rows_in_words(examples: Examples) -> str:
    cut = f", {examples.cut} cut" if examples.cut else ""
    packed = "" if examples.fill_rate is None else f", packed, {100 * examples.fill_rate:.1f} % full"
    return f"{len(examples)} rows ({examples.dropped} too long, left out{cut}{packed})"
