"""Supervised fine-tuning, the verb `sft`: rows -> update -> (checkpoint, report, export). The demo's cold start
uses the same `FineTuner`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.config import SFTConfig
from grpo_jax.data.sft.examples import ExampleBatch, Examples, PackedBatch
from grpo_jax.errors import UserError
from grpo_jax.learner.logprobs import LogprobSettings, Rows, make_rows
from grpo_jax.learner.objective import SFT, Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state, init_state
from grpo_jax.learner.update import make_update, read
from grpo_jax.models.lora import Base
from grpo_jax.models.lora import joined as whole_model
from grpo_jax.program import Program
from grpo_jax.runs.run import Stopwatch
from grpo_jax.runs.status import phase
from grpo_jax.setup.learner import dropout_of, optimizer_of, schedule_of
from grpo_jax.setup.policy import Policy
from grpo_jax.setup.weights import load_trained
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, check_rows
from grpo_jax.training.sft_evaluation import HeldOut, perplexity

Row = dict[str, Any]


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
        layout = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        self.init = Program(
            "init", lambda params: init_state(params, optimizer), donate_argnums=0, out_shardings=layout
        )
        self.batch = Program("batches", _packed_batch if config.packing else _batch)
        logprob_settings = LogprobSettings(
            num_tokens=policy.vocabulary.num_tokens,
            dtype=policy.dtype,
            chunk=config.logprob_chunk,
            remat=config.gradient_checkpointing,
            attention=policy.attention,
        )
        micro_batches = config.rows_per_step // micro
        self.update = make_update(
            policy.cfg,
            SFT(),
            logprob_settings,
            optimizer,
            micro_batches,
            layout,
            policy.mesh,
            dropout=dropout_of(config),
        )
        self.held_out = _held_out(config, policy, held_out, logprob_settings) if held_out else None

    def start(self) -> TrainState:
        """The state before the first update."""
        return self.init(load_trained(self.policy, self.seed))

    def __call__(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """The update of a step, counted from 0; `state` is donated."""
        clock, rows = Stopwatch(), self.examples(step)
        with clock("update"):
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
        """`summary` and `samples` of the held-out rows; None if there are none."""
        if self.held_out is None:
            return None
        with phase("evaluation"):
            return self.held_out(whole_model(state.params, self.base))

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


def _held_out(
    config: SFTConfig, policy: Policy, rows: list[Row], logprob_settings: LogprobSettings
) -> HeldOut:
    """One row each: every row is scored once, so packing would gain little."""
    rows = rows[: config.eval_rows or None]
    try:
        return HeldOut(config, policy, rows, _examples(config, policy, rows, packing=False), logprob_settings)
    except UserError as fault:
        raise UserError(f"eval_dataset: {fault}") from None


def _batch(completions: Array, mask: Array, prompts: Array, lengths: Array) -> Batch:
    rows = make_rows(prompts, lengths, completions, mask)
    return Batch(rows, advantages=jnp.zeros(len(lengths)))


def _packed_batch(completions: Array, mask: Array, sequences: Array, segments: Array, before: Array) -> Batch:
    nothing = jnp.zeros(len(sequences), jnp.int32)
    rows = Rows(sequences, nothing, completions, mask, segments=segments, before=before)
    return Batch(rows, advantages=jnp.zeros(len(sequences)))
