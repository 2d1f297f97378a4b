"""AdamW with a schedule and global-norm clipping, from optax; and the state that training carries."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from grpo_jax.learner.entropy import EntropyBonus, EntropyControl
from grpo_jax.learner.moments import in_bfloat16
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.transformer import Params
from grpo_jax.sharding.mesh import everywhere
from grpo_jax.sharding.rules import TRAIN_RULES, shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Master weights, or adapters, in float32: updates of 1e-6 vanish in bfloat16. The optimizer
    stores Adam's moments in its own form."""

    params: Params
    opt_state: Any
    updates: Array  # [] int32, optimizer steps taken
    entropy: EntropyControl | None = None  # of an adaptive entropy bonus
    reference: Params | None = None  # one that follows the policy; any other is the learner's


def make_optimizer(
    schedule: Schedule,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    compact: bool = False,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101). Biases and norms do not decay; a `max_grad_norm` of 0
    leaves gradients as they are. `compact` keeps the moments in bfloat16."""
    clip = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm > 0 else []
    adamw = optax.adamw(schedule.build(), *betas, epsilon, weight_decay=weight_decay, mask=_decays)
    whole = optax.chain(*clip, adamw)
    return in_bfloat16(whole) if compact else whole


def _decays(params: Params) -> Any:
    matrices = "kernel", "embedding", "lora_a", "lora_b"
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    bonus: EntropyBonus | None = None,
    sync: ReferenceSync | None = None,
) -> TrainState:
    """The state before the first update."""
    entropy, reference = bonus.start() if bonus else None, sync.start(params) if sync else None
    return TrainState(params, optimizer.init(params), jnp.int32(0), entropy, reference)


def state_shardings(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    bonus: EntropyBonus | None = None,
    sync: ReferenceSync | None = None,
) -> Any:
    """A TrainState of shardings: moments and a reference as their parameters, counters replicated."""
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer, bonus, sync), params)
    weights = shardings(params, TRAIN_RULES, mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        weights,
        transform_non_params=lambda _: everywhere(mesh),
    )
    updates, entropy = jax.tree.map(lambda _: everywhere(mesh), (abstract.updates, abstract.entropy))
    return TrainState(weights, moments, updates, entropy, weights if sync else None)


def abstract_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    bonus: EntropyBonus | None = None,
    sync: ReferenceSync | None = None,
) -> TrainState:
    """The state's shapes, dtypes and shardings, for restoring a checkpoint onto this mesh."""
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, bonus, sync), params)
    lay = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(lay, shapes, state_shardings(params, optimizer, mesh, bonus, sync))
