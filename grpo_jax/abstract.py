"""The arguments of the compiled programs as shapes with shardings: what `lower` needs, before any array exists.

    program = make_update(cfg, objective, how, optimizer, 1, state_shardings(abstract_params(cfg), optimizer, mesh), mesh)
    program.jit.lower(train_state(cfg, optimizer, mesh), batch(mesh, 64, 512, 512)).compile()

The shapes are those that the trainer's own calls have; the programs are the trainer's own.
"""

import jax
import jax.numpy as jnp
import optax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, Sharding

from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.objective import Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, abstract_params
from grpo_jax.sharding.mesh import by_rows, everywhere
from grpo_jax.sharding.rules import ROLLOUT_RULES, Rules, shardings


def weights(cfg: ModelConfig, mesh: Mesh, dtype: str, rules: Rules = ROLLOUT_RULES) -> Params:
    """Weights in `dtype` where `rules` lay them: by default the sampler's copy."""
    place = lambda x, sharding: ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=sharding)
    shapes = abstract_params(cfg)
    return jax.tree.map(place, shapes, shardings(shapes, rules, mesh))


def train_state(cfg: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The learner's state."""
    return abstract_state(abstract_params(cfg), optimizer, mesh)


def prompts(mesh: Mesh, count: int, width: int) -> tuple[ShapeDtypeStruct, ...]:
    """What generate takes after the weights: tokens [P,Tp], lengths [P], uids [P] and the step's key."""
    rows, key = by_rows(mesh), jax.eval_shape(lambda: jax.random.key(0))
    return (
        ShapeDtypeStruct((count, width), jnp.int32, sharding=rows),
        ShapeDtypeStruct((count,), jnp.int32, sharding=rows),
        ShapeDtypeStruct((count,), jnp.uint32, sharding=rows),
        ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere(mesh)),
    )


def rows(mesh: Mesh, count: int, prompt_width: int, width: int) -> Rows:
    """What score takes after the weights: `count` rows of prompts [B,Tp] and completions [B,Tc]."""
    return Rows(
        tokens=_by_rows(mesh, jnp.int32, count, prompt_width + width),
        prompt_lengths=_by_rows(mesh, jnp.int32, count),
        completions=_by_rows(mesh, jnp.int32, count, width),
        mask=_by_rows(mesh, jnp.float32, count, width),
    )


def batch(
    mesh: Mesh, count: int, prompt_width: int, width: int, *, old: bool = False, reference: bool = False
) -> Batch:
    """What update takes after the state. `old`: several updates a rollout; `reference`: a KL term."""
    logprobs = _by_rows(mesh, jnp.float32, count, width)
    return Batch(
        rows=rows(mesh, count, prompt_width, width),
        advantages=_by_rows(mesh, jnp.float32, count),
        sampler_logprobs=logprobs,
        old_logprobs=logprobs if old else None,
        ref_logprobs=logprobs if reference else None,
        mean_tokens=ShapeDtypeStruct((), jnp.float32, sharding=everywhere(mesh)),
    )


def _by_rows(mesh: Mesh, dtype: jnp.dtype, *shape: int) -> ShapeDtypeStruct:
    sharding: Sharding = by_rows(mesh)
    return ShapeDtypeStruct(shape, dtype, sharding=sharding)
