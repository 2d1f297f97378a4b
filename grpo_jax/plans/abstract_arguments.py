"""Abstract arguments (shapes with shardings) of the programs, and their compilation for chips that are not attached.

    mesh = topology_mesh("v5e:2x4")
    program = make_generate(cfg, vocabulary, sampling, 8, 512, mesh)
    compiled = compile_for("v5e:2x4", mesh, program, sampler_copy(cfg, mesh, "bfloat16"), *prompts(mesh, 16, 512))
    compiled.memory_analysis()

Shapes and programs are the same as the trainer's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.objective import Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.transformer import Params, abstract_params, sampler_weights
from grpo_jax.program import Program
from grpo_jax.sharding.mesh import by_rows, everywhere
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, Rules, shardings
from grpo_jax.sharding.targets import compiler_options


def compile_for(target: str, mesh: Mesh, program: Program, *arguments: Any) -> jax.stages.Compiled:
    """`program` compiled for the chips of `target`. `mesh` consists of them (`topology_mesh`).

    The mesh is set only while lowering: computing an array under it would require the hardware.
    """
    with jax.set_mesh(mesh):
        lowered = program.jit.lower(*arguments)
    return lowered.compile(compiler_options(target))


def weights(
    cfg: ModelConfig, mesh: Mesh, dtype: str, rules: Rules = TRAIN_RULES, form: str = "auto"
) -> Params:
    """Weights in `dtype` and `form`, layers stacked, sharded by `rules` (by default the learner's)."""
    convert = functools.partial(sampler_weights, dtype=jnp.dtype(dtype), form=form)
    shapes = jax.eval_shape(convert, abstract_params(cfg))
    place = lambda x, sharding: array(sharding, x.dtype, *x.shape)
    return jax.tree.map(place, shapes, shardings(shapes, rules, mesh))


def sampler_copy(cfg: ModelConfig, mesh: Mesh, dtype: str, form: str = "auto") -> Params:
    """The sampler's weights in `dtype` and `form`, as a tuple of layers."""
    return by_layer(weights(cfg, mesh, dtype, ROLLOUT_RULES, form), mesh)


def by_layer(stacked: Params, mesh: Mesh) -> Params:
    """The same weights with a tuple of layers in place of stacked ones."""
    one = lambda x: array(NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:])), x.dtype, *x.shape[1:])
    count = jax.tree.leaves(stacked["layers"])[0].shape[0]
    return stacked | {"layers": (jax.tree.map(one, stacked["layers"]),) * count}


def train_state(cfg: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The learner's state for a model without LoRA."""
    return abstract_state(abstract_params(cfg), optimizer, mesh)


def prompts(mesh: Mesh, count: int, width: int) -> tuple[Any, Any, Any, Any]:
    """Arguments of `generate` after the weights: tokens [P,Tp], lengths [P], uids [P] and the step's key."""
    rows, key = by_rows(mesh), jax.eval_shape(lambda: jax.random.key(0))
    return (
        array(rows, jnp.int32, count, width),
        array(rows, jnp.int32, count),
        array(rows, jnp.uint32, count),
        array(everywhere(mesh), key.dtype),
    )


def rows(mesh: Mesh, count: int, prompt_width: int, width: int) -> Rows:
    """Argument of `score` after the weights: `count` rows of prompts [B,Tp] and completions [B,Tc]."""
    split = by_rows(mesh)
    return Rows(
        tokens=array(split, jnp.int32, count, prompt_width + width),
        prompt_lengths=array(split, jnp.int32, count),
        completions=array(split, jnp.int32, count, width),
        mask=array(split, jnp.float32, count, width),
    )


def batch(
    mesh: Mesh,
    count: int,
    prompt_width: int,
    width: int,
    *,
    old: bool = False,
    reference: bool = False,
    ends: int = 0,
) -> Batch:
    """Argument of `update` after the state.

    Args:
        old: with log-probs of the old policy, for several updates per rollout.
        reference: with log-probs of the reference, for a KL term.
        ends: the number of widths that micro-batches may have; 0 if all have the full width.
    """
    logprobs = array(by_rows(mesh), jnp.float32, count, width)
    return Batch(
        rows=rows(mesh, count, prompt_width, width),
        advantages=array(by_rows(mesh), jnp.float32, count),
        sampler_logprobs=logprobs,
        old_logprobs=logprobs if old else None,
        ref_logprobs=logprobs if reference else None,
        mean_tokens=array(everywhere(mesh), jnp.float32),
        ends=array(everywhere(mesh), jnp.int32, ends) if ends else None,
    )


def array(sharding: Sharding, dtype: Any, *shape: int) -> Any:
    """A shape with its sharding; typed `Any`, because it takes the place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
