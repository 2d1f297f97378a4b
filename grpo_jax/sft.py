"""Supervised fine-tuning, the verb `sft`: rows -> update -> (checkpoint, report, export). The demo's cold start
uses the same `FineTuner`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.assembly import open_run
from grpo_jax.config import SFTConfig
from grpo_jax.data.examples import ExampleBatch, Examples
from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError
from grpo_jax.learner.logprobs import Scoring, make_rows
from grpo_jax.learner.objective import SFT, Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state, init_state
from grpo_jax.learner.update import make_update, read
from grpo_jax.learning import lora_of, optimizer_of, schedule_of
from grpo_jax.models.lora import Base
from grpo_jax.policy import Policy, open_policy
from grpo_jax.programs import Program
from grpo_jax.runs.metrics import peak_memory
from grpo_jax.runs.run import Run, Stopwatch
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, check_rows
from grpo_jax.weights import export_run, load_base, load_trained

Row = dict[str, Any]


class FineTuner:
    """The mean negative log-likelihood of completions, minimised a batch a step. Holds data and programs, no
    state; call it inside the policy's mesh. UserError for rows that cannot be used or do not fit the mesh."""

    def __init__(self, config: SFTConfig, policy: Policy, rows: list[Row]):
        check_rows(policy.mesh, "rows_per_step", config.rows_per_step)
        micro = config.micro_batch_size or config.rows_per_step
        check_rows(policy.mesh, "micro_batch_size", micro)
        self.policy, self.examples, self.seed = policy, _examples(config, policy, rows), config.seed
        self.base: Base | None = None
        schedule = schedule_of(config)
        optimizer = optimizer_of(config, schedule)
        self.learning_rate = schedule.build()
        self.abstract_state = abstract_state(policy.abstract_trained(), optimizer, policy.mesh)
        where = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        self.init = Program(
            "init", lambda params: init_state(params, optimizer), donate_argnums=0, out_shardings=where
        )
        self.batch = Program("batches", _batch)
        how = Scoring(
            num_tokens=policy.vocabulary.num_tokens,
            dtype=policy.dtype,
            chunk=config.logprob_chunk,
            remat=config.gradient_checkpointing,
            attention=policy.attention,
        )
        micro_batches = config.rows_per_step // micro
        self.update = make_update(policy.cfg, SFT(), how, optimizer, micro_batches, where, policy.mesh)

    def start(self) -> TrainState:
        """The state before the first update."""
        return self.init(load_trained(self.policy, self.seed))

    def __call__(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """The update of a step, counted from 0; `state` is donated."""
        clock, rows = Stopwatch(), self.examples(step)
        state, metrics = self.update(state, self.batch(*self._on_devices(rows)), self.base)
        values = read(metrics)
        tokens = int(rows.completion_lengths.sum())
        return state, {
            **values,
            "perplexity": math.exp(min(values["nll"], 80.0)),
            "learning_rate": float(self.learning_rate(step)),
            "num_tokens": tokens + int(rows.prompt_lengths.sum()),
            "step_time": clock.total(),
            "tokens_per_second": tokens / clock.total(),
            "compilations/update": self.update.compilations,
        }

    def _on_devices(self, rows: ExampleBatch) -> tuple:
        mask = np.arange(rows.completions.shape[1]) < rows.completion_lengths[:, None]
        arrays = rows.prompts, rows.prompt_lengths, rows.completions, mask.astype(np.float32)
        return tuple(hosts.put(x, by_rows(self.policy.mesh)) for x in arrays)


def _examples(config: SFTConfig, policy: Policy, rows: list[Row]) -> Examples:
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
        prompt_column=config.prompt_column,
        completion_column=config.completion_column,
        layout=config.layout,
    )


def _batch(prompts: Array, lengths: Array, completions: Array, mask: Array) -> Batch:
    rows = make_rows(prompts, lengths, completions, mask)
    return Batch(rows, advantages=jnp.zeros(len(lengths)))


def sft(config: SFTConfig) -> int:
    """The verb `sft`: train to `max_steps`, from the newest checkpoint in `output_dir` if there is one."""
    if config.model == "demo":
        raise UserError("model = demo: sft needs a model to start from; give a local folder or a hub id")
    policy = open_policy(config, lora=lora_of(config), base_weights=config.base_weights)
    tuner = FineTuner(config, policy, load_rows(config.dataset, config.dataset_split, seed=config.seed))
    with open_run(config, policy) as run, jax.set_mesh(policy.mesh):
        state, notes = _train(run, tuner, config.max_steps)
        _finish(run, tuner, state, notes, config.model)
    return 0


def _train(run: Run, tuner: FineTuner, steps: int) -> tuple[TrainState, dict[str, Any]]:
    tuner.base = load_base(tuner.policy)
    found = run.restore(tuner.abstract_state)
    first, state, notes = found or (0, tuner.start(), {"num_tokens": 0, "seconds": 0.0})
    for step in range(first, steps):
        state, metrics = tuner(state, step)
        notes["seconds"] += metrics["step_time"]
        notes["num_tokens"] = metrics["num_tokens"] = notes["num_tokens"] + metrics["num_tokens"]
        notes["nll"] = metrics["nll"]
        run.log(step + 1, metrics | {"peak_memory": peak_memory()[0]})
        run.end_step(step + 1, state, notes)
    return state, notes


def _finish(run: Run, tuner: FineTuner, state: TrainState, notes: dict[str, Any], model: str) -> None:
    """Export, summary, closing lines."""
    policy, (memory, where) = tuner.policy, peak_memory()
    export_run(run, policy, state.params, model)
    sizes = {"steps": run.total, "rows": len(tuner.examples), "rows_dropped": tuner.examples.dropped}
    run.folder.write_summary(sizes | notes | {"peak_memory": memory, "peak_memory_of": where})
    run.end_progress()
    if hosts.is_writer():
        print(
            f"{run.total} steps on {len(tuner.examples)} rows ({tuner.examples.dropped} too long, left out), "
            f"{notes['num_tokens']} tokens, {notes['seconds']:.0f} s, nll {notes['nll']:.4g}"
        )
        if run.folder.hf.exists():
            print(f"model: {run.folder.hf}")
