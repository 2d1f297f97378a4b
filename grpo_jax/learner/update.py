"""The compiled step: micro-batches scanned inside, one optimizer update, state donated."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from grpo_jax.errors import UserError
from grpo_jax.learner.logprobs import Scoring, completion_logprobs
from grpo_jax.learner.objective import GRPO, SFT, Batch, sampler_gap
from grpo_jax.learner.optimizer import TrainState
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, cast
from grpo_jax.programs import Program
from grpo_jax.sharding import hosts
from grpo_jax.sharding.constraints import over_rows
from grpo_jax.sharding.mesh import by_rows, everywhere

Metrics = dict[str, Array]  # scalars


def make_update(
    cfg: ModelConfig,
    objective: GRPO | SFT,
    how: Scoring,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    state_sharding: TrainState,
    mesh: Mesh,
) -> Program:
    """The program (state, batch) -> (state, metrics); `state` is donated. It compiles once for each shape."""

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics = accumulate(cfg, objective, how, micro_batches, state.params, batch)
        with jax.named_scope("optimizer"):
            changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, changes)
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(params, opt_state, state.updates + 1), metrics

    out = (state_sharding, everywhere(mesh))
    return Program("update", update, donate_argnums=0, out_shardings=out)


def make_score(cfg: ModelConfig, how: Scoring, micro_batches: int, mesh: Mesh) -> Program:
    """The program (params, rows) -> log-probs [B,Tc]: for old policies and the reference, without gradients."""

    def score(params: Params, rows: Any) -> Array:
        params = cast(params, jnp.dtype(how.dtype))
        one = lambda micro: completion_logprobs(cfg, params, micro, how)[0]
        parts = jax.lax.map(one, split(rows, micro_batches))  # [M,B/M,Tc]
        return parts.swapaxes(0, 1).reshape(-1, parts.shape[-1])

    return Program("score", score, out_shardings=by_rows(mesh))


def accumulate(
    cfg: ModelConfig, objective: GRPO | SFT, how: Scoring, micro_batches: int, params: Params, batch: Batch
) -> tuple[Params, Metrics]:
    """Gradients [as params, float32] and metrics of the whole batch, a micro-batch at a time.

    Row weights are computed before the split, and so the micro-batches' losses and gradients simply add up.
    """
    weights = objective.weights(batch)
    loss = partial(_weighted_loss, cfg, objective, how)

    def one(micro: Any) -> tuple[tuple[Params, Metrics], Metrics]:
        (_, (sums, peaks)), grads = jax.value_and_grad(loss, has_aux=True)(params, *micro)
        return (grads, sums), peaks

    def add(total: Any, micro: Any) -> tuple[Any, Metrics]:
        part, peaks = one(micro)
        return jax.tree.map(jnp.add, total, part), peaks

    micro = split((batch, weights), micro_batches)
    shapes, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (grads, sums), peaks = jax.lax.scan(add, zeros, micro)
    return grads, _means(sums, batch) | {name: peak.max() for name, peak in peaks.items()}


def _weighted_loss(
    cfg: ModelConfig, objective: GRPO | SFT, how: Scoring, params: Params, batch: Batch, weights: Array
) -> tuple[Array, tuple[Metrics, Metrics]]:
    """sum_b w_b sum_t m_bt loss_bt over a micro-batch, and its metrics as sums over tokens and as peaks."""
    mask = batch.rows.mask
    logprobs, entropy = completion_logprobs(cfg, params, batch.rows, how)
    per_token, means = objective.per_token(logprobs, batch)
    loss = (weights[:, None] * mask * per_token).sum()
    peaks = {}
    if batch.sampler_logprobs is not None:
        gap = sampler_gap(logprobs, batch)
        means["sampling/sampling_logp_difference/mean"] = gap
        peaks["sampling/sampling_logp_difference/max"] = gap.max()
    if entropy is not None:
        means["entropy"] = entropy
    sums = {name: (value * mask).sum() for name, value in means.items()}
    return loss, (sums | {"loss": loss}, peaks)


def _means(sums: Metrics, batch: Batch) -> Metrics:
    tokens = jnp.maximum(batch.rows.mask.sum(), 1.0)
    return {name: value if name == "loss" else value / tokens for name, value in sums.items()}


def split(tree: Any, parts: int) -> Any:
    """Arrays [B,...] as [parts,B/parts,...], row b in part b % parts: each part takes rows from every shard of the
    mesh, and no row moves to another device. Scalars are repeated."""

    def one(x: Array) -> Array:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        return over_rows(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), axis=1)

    return jax.tree.map(one, tree)


def read(metrics: Metrics) -> dict[str, float]:
    """An update's metrics as Python numbers; waits for the update.

    UserError when its gradient was not finite: the weights are lost with it, and no checkpoint may take them.
    """
    values = {name: float(hosts.get(value)) for name, value in metrics.items()}
    if not math.isfinite(values["grad_norm"]):
        raise UserError(
            f"the gradient is not finite (loss {values['loss']}); nothing of it was saved. Export the last "
            "checkpoint and start from that with a lower learning_rate"
        )
    return values
