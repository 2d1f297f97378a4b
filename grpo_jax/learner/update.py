"""The compiled step: micro-batches scanned inside, one optimizer update, state donated."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from grpo_jax.errors import UserError
from grpo_jax.learner.adapter_dropout import AdapterDropout
from grpo_jax.learner.entropy import EntropyControl
from grpo_jax.learner.logprobs import LogprobSettings, Rows, completion_logprobs
from grpo_jax.learner.microbatches import gone_through, joined, narrowed, split
from grpo_jax.learner.objective import GRPO, SFT, Batch
from grpo_jax.learner.optimizer import TrainState
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.row_metrics import RowSums
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.lora import Base, Dropout
from grpo_jax.models.lora import joined as whole_model
from grpo_jax.models.transformer import Params, cast
from grpo_jax.program import Program
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, everywhere

Metrics = dict[str, Array]  # scalars


def make_update(
    cfg: ModelConfig,
    objective: GRPO | SFT,
    logprob_settings: LogprobSettings,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    state_sharding: TrainState,
    mesh: Mesh,
    sync: ReferenceSync | None = None,
    dropout: AdapterDropout | None = None,
) -> Program:
    """The program (state, batch, base=None) -> (state, metrics); `state` is donated. Compiles once for each shape."""

    def update(state: TrainState, batch: Batch, base: Base | None = None) -> tuple[TrainState, Metrics]:
        grads, metrics, control = accumulate(
            cfg,
            objective,
            logprob_settings,
            micro_batches,
            state.params,
            batch,
            state.entropy,
            base,
            None if dropout is None else dropout.at(state.updates),
        )
        with jax.named_scope("optimizer"):
            changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, changes)
        metrics["grad_norm"] = optax.global_norm(grads)
        updates, reference = state.updates + 1, state.reference
        if sync is not None and reference is not None:
            reference = sync.after(reference, params, updates)
        return TrainState(params, opt_state, updates, control, reference), metrics

    out = (state_sharding, everywhere(mesh))
    return Program("update", update, donate_argnums=0, out_shardings=out)


def make_score(
    cfg: ModelConfig, logprob_settings: LogprobSettings, micro_batches: int, mesh: Mesh
) -> Program:
    """The program (params, rows, ends=None) -> log-probs [B,Tc]: for old policies and the reference, without
    gradients. Of the micro-batches before the last of `ends` only; 0 elsewhere."""

    def score(params: Params, rows: Rows, ends: Array | None = None) -> Array:
        return forward(cfg, replace(logprob_settings, entropy=False), micro_batches, params, rows, ends)[0]

    return Program("score", score, out_shardings=by_rows(mesh))


def forward(
    cfg: ModelConfig,
    logprob_settings: LogprobSettings,
    micro_batches: int,
    params: Params,
    rows: Rows,
    ends: Array | None = None,
) -> tuple[Array, Array | None]:
    """Log-probs and entropies [B,Tc] of a mini-batch, a micro-batch at a time, as `gone_through` reads `ends`."""
    params = cast(params, jnp.dtype(logprob_settings.dtype))
    parts = split(rows, micro_batches)
    Tc = rows.mask.shape[1]

    def one(width: int, i: Array | int) -> Any:
        return completion_logprobs(
            cfg, params, narrowed(jax.tree.map(lambda x: x[i], parts), Tc, width), logprob_settings
        )

    def put(width: int, i: Array, all_: Any) -> Any:
        return jax.tree.map(lambda whole, part: whole.at[i, :, :width].set(part), all_, one(width, i))

    shapes = jax.eval_shape(partial(one, Tc), 0)
    start = jax.tree.map(lambda x: jnp.zeros((micro_batches, *x.shape), x.dtype), shapes)
    return jax.tree.map(joined, gone_through(put, start, micro_batches, Tc, ends))  # [M,B/M,Tc] as [B,Tc]


def sharing_error(
    cfg: ModelConfig, logprob_settings: LogprobSettings, micro_batches: int, params: Params, rows: Rows
) -> Array:
    """Mean difference [] of the log-probs of the first micro-batch between prompts shared by a group and whole rows."""
    first = jax.tree.map(lambda x: x[0], split(rows, micro_batches))
    params, logprob_settings = (
        cast(params, jnp.dtype(logprob_settings.dtype)),
        replace(logprob_settings, entropy=False),
    )
    shared, plain = (
        completion_logprobs(cfg, params, first, h)[0]
        for h in (logprob_settings, replace(logprob_settings, group=1))
    )
    return jnp.abs(shared - plain).sum() / jnp.maximum(first.mask.sum(), 1)


def accumulate(
    cfg: ModelConfig,
    objective: GRPO | SFT,
    logprob_settings: LogprobSettings,
    micro_batches: int,
    params: Params,
    batch: Batch,
    control: EntropyControl | None = None,
    base: Base | None = None,
    dropout: Dropout | None = None,
) -> tuple[Params, Metrics, EntropyControl | None]:
    """Gradients [as params, float32], metrics and the entropy bonus's next state, of the whole batch. `base`: weights
    that are not trained, where `params` are adapters beside them; `dropout` of these.

    Rows are weighted before the split, so the micro-batches' losses and gradients add up.
    """
    logprob_settings = replace(logprob_settings, entropy=logprob_settings.entropy or objective.needs_entropy)
    if isinstance(objective, GRPO) and objective.masks_entropy and micro_batches > 1:
        entropies = _entropies(cfg, logprob_settings, micro_batches, whole_model(params, base), batch.rows)
        batch = objective.with_entropy_mask(batch, entropies)
    batch = objective.weigh(batch, control)
    parts, Tc = split(replace(batch, ends=None), micro_batches), batch.rows.mask.shape[1]
    thinned = lambda i: partial(whole_model, base=base, dropout=None if dropout is None else dropout.of(i))
    part_loss = lambda trained, part, i: _loss(cfg, objective, logprob_settings, thinned(i), trained, part)
    gradient = jax.value_and_grad(part_loss, has_aux=True)

    def add(width: int, i: Array, total: Any) -> Any:
        grads, loss, rows = total
        part = narrowed(jax.tree.map(lambda x: x[i], parts), Tc, width)
        (value, found), more = gradient(params, part, i)
        return (
            jax.tree.map(jnp.add, grads, more),
            loss + value,
            jax.tree.map(lambda all_, one: all_.at[i].set(one), rows, found),
        )

    loss, rows = jax.eval_shape(part_loss, params, jax.tree.map(lambda x: x[0], parts), 0)
    start = _zeros(params), _zeros(loss), _no_rows(rows, micro_batches)
    grads, loss, rows = gone_through(add, start, micro_batches, Tc, batch.ends)
    rows = jax.tree.map(joined, rows)
    metrics = {"loss": loss} | objective.metrics(rows, batch)
    if isinstance(objective, GRPO) and objective.bonus.is_on:
        control = objective.bonus.after(control, objective.effective_entropy(rows))
        metrics["entropy_coef"] = jnp.float32(objective.bonus.coef) if control is None else control.coef
    return grads, metrics, control


def _loss(
    cfg: ModelConfig,
    objective: GRPO | SFT,
    logprob_settings: LogprobSettings,
    whole: Callable[[Params], Params],
    trained: Params,
    batch: Batch,
) -> tuple[Array, RowSums]:
    return objective.loss(*completion_logprobs(cfg, whole(trained), batch.rows, logprob_settings), batch)


def _entropies(
    cfg: ModelConfig, logprob_settings: LogprobSettings, micro_batches: int, params: Params, rows: Rows
) -> Array:
    """Entropies [B,Tc] by a separate pass: the highest of a mini-batch are known only when all are computed."""
    entropy = forward(cfg, logprob_settings, micro_batches, params, rows)[1]
    assert entropy is not None
    return entropy


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _no_rows(shapes: RowSums, parts: int) -> RowSums:
    """Values [parts,B/parts] for rows that are not computed: they change no sum and no extreme."""
    full = lambda tree, value: jax.tree.map(lambda x: jnp.full((parts, *x.shape), value, x.dtype), tree)
    return RowSums(
        full(shapes.sums, 0),
        full(shapes.least, jnp.inf),
        full(shapes.most, -jnp.inf),
        full(shapes.computed, 0),
    )


def read(metrics: Metrics) -> dict[str, float]:
    """An update's metrics as Python numbers; waits for the update.

    UserError when its gradient was not finite: the weights are then lost, and must not be saved.
    """
    values = {name: float(hosts.get(value)) for name, value in metrics.items()}
    if not math.isfinite(values["grad_norm"]):
        raise UserError(
            f"the gradient is not finite (loss {values['loss']}); nothing of it was saved. Export the last "
            "checkpoint and start from that with a lower learning_rate"
        )
    return values
