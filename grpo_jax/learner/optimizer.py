"""Optimizers with a schedule and global-norm clipping, most from optax; and the state that training carries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.learner.adafactor import scale_by_factored_rms
from grpo_jax.learner.entropy import EntropyBonus, EntropyControl
from grpo_jax.learner.matrix_axes import in_layers, matrix_axes
from grpo_jax.learner.moments import in_bfloat16
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.transformer import Params
from grpo_jax.sharding.mesh import everywhere
from grpo_jax.sharding.rules import TRAIN_RULES, shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Master weights, or adapters, in float32: updates of 1e-6 vanish in bfloat16. The optimizer stores its moments in
    its own form."""

    params: Params
    opt_state: Any
    updates: Array  # [] int32, optimizer steps taken
    entropy: EntropyControl | None = None  # of an adaptive entropy bonus
    reference: Params | None = None  # one that follows the policy; any other is the learner's


def make_optimizer(
    schedule: Schedule,
    *,
    optim: str = "adamw",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    compact: bool = False,
) -> optax.GradientTransformation:
    """The optimizer of a name in `OPTIMIZERS`. Biases and norms do not decay; a `max_grad_norm` of 0 leaves gradients
    as they are. `compact` keeps the moments in bfloat16."""
    clip = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm > 0 else []
    whole = optax.chain(*clip, OPTIMIZERS[optim](schedule.build(), betas, epsilon, weight_decay))
    return in_bfloat16(whole) if compact else whole


def _adamw(
    rate: optax.Schedule, betas: tuple[float, float], epsilon: float, decay: float
) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2017, arXiv:1711.05101."""
    return optax.adamw(rate, *betas, epsilon, weight_decay=decay, mask=_decays)


def _adafactor(rate: optax.Schedule, _: Any, __: float, decay: float) -> optax.GradientTransformation:
    decayed = optax.add_decayed_weights(decay, _decays)
    return optax.chain(scale_by_factored_rms(), decayed, optax.scale_by_learning_rate(rate))


def _lion(
    rate: optax.Schedule, betas: tuple[float, float], _: float, decay: float
) -> optax.GradientTransformation:
    """Chen et al. 2023, arXiv:2302.06675."""
    return optax.lion(rate, *betas, weight_decay=decay, mask=_decays)


def _muon(
    rate: optax.Schedule, betas: tuple[float, float], epsilon: float, decay: float
) -> optax.GradientTransformation:
    """Muon for the matrices of the layers (Jordan et al. 2024, with a momentum of 0.95), and for all other parameters
    AdamW with Nesterov's momentum, as in optax."""
    return optax.contrib.muon(
        rate,
        eps=epsilon,
        weight_decay=decay,
        adam_b1=betas[0],
        adam_b2=betas[1],
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=_layer_matrices,
    )


def _sgd(rate: optax.Schedule, _: Any, __: float, decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay, _decays), optax.sgd(rate))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}
"""Name -> (learning rate, betas, epsilon, weight decay) -> the optimizer without clipping."""


def _decays(params: Params) -> Any:
    matrices = "kernel", "embedding", "lora_a", "lora_b"
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)


def _layer_matrices(params: Params) -> Any:
    """For each parameter the axes of its matrix as optax wants them; None: it is not a matrix of a layer."""

    def axes(path: Any, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        found = matrix_axes(path, x) if in_layers(path) else None
        return found and optax.contrib.MuonDimensionNumbers(found.inputs, found.outputs)

    return jax.tree_util.tree_map_with_path(axes, params)


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
        _sharding_of_moment,
        abstract.opt_state,
        abstract.params,
        weights,
        transform_non_params=lambda _: everywhere(mesh),
        is_leaf=_is_masked,
    )
    updates, entropy = jax.tree.map(lambda _: everywhere(mesh), (abstract.updates, abstract.entropy))
    return TrainState(weights, moments, updates, entropy, weights if sync else None)


def _sharding_of_moment(moment: Any, weight: Any, sharding: NamedSharding) -> Any:
    """That of the weight, along the axes that the moment has in the same size; nothing of it may be split over others.
    Nothing at all for a weight that this part of the optimizer leaves to another."""
    if _is_masked(moment):
        return moment
    if len(moment.shape) != len(weight.shape):
        return NamedSharding(sharding.mesh, PartitionSpec())
    axes = zip(sharding.spec, moment.shape, weight.shape, strict=True)
    spec = PartitionSpec(*(axis if own == whole else None for axis, own, whole in axes))
    return NamedSharding(sharding.mesh, spec)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


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
