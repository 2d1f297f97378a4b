"""The run that is planned: its settings on a target, with the same policy, learner and programs as a real run."""

import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.learner.batches import bucket
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.microbatches import widths
from grpo_jax.models import hf
from grpo_jax.models.classifier import check_architecture
from grpo_jax.models.config import PUBLISHED, ModelConfig
from grpo_jax.models.kernels import check_kernel
from grpo_jax.models.lora import Base, joined
from grpo_jax.models.transformer import cast
from grpo_jax.plans import abstract_arguments
from grpo_jax.program import Program
from grpo_jax.rewards.by_model import PREFIX, column_of
from grpo_jax.rollout.budget import Demand, prompts_per_prefill
from grpo_jax.rollout.decoding import PrefillBatch
from grpo_jax.rollout.programs import Programs, Vocabulary
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.state import Decoder, TableSize
from grpo_jax.scoring.reward_models import ROWS_EACH, abstract_reward_model, scoring_program, weight_bytes
from grpo_jax.setup import memory_budget
from grpo_jax.setup.learner import learner_of, lora_of, optimizer_of, passes_of, schedule_of
from grpo_jax.setup.policy import Policy
from grpo_jax.setup.weight_sync import arguments
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.mesh import ROWS, by_rows, check_rows, row_shards
from grpo_jax.sharding.mesh_spec import parse_mesh
from grpo_jax.sharding.targets import chip_of, topology_mesh


@dataclass(frozen=True)
class Job:
    """A program to compile, with its arguments as shapes.

    beside: bytes that each device holds beside the arguments while it runs.
    trips: trip counts of its loops that depend on data, from the outermost inwards.
    """

    name: str
    program: Program
    arguments: tuple
    beside: int
    trips: list[int]


@dataclass(frozen=True)
class PlannedRun:
    """A run on a target."""

    config: GRPOConfig
    target: str
    cfg: ModelConfig

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh over all devices of the target."""
        return topology_mesh(self.target, parse_mesh(self.config.mesh))

    @cached_property
    def policy(self) -> Policy:
        """The policy, of which only the shape exists."""
        vocabulary, c = Vocabulary((0,), 0, self.cfg.vocab_size), self.config
        dtype = "bfloat16" if c.dtype == "auto" else c.dtype
        check_kernel(c.attention, self.mesh.devices.flat[0].platform, dtype)
        return Policy(
            folder=Path(c.model),
            cfg=self.cfg,
            tokenizer=None,
            vocabulary=vocabulary,
            mesh=self.mesh,
            dtype=dtype,
            rollout_weights=c.rollout_weights,
            rollout_cache=c.rollout_cache,
            lora=lora_of(c),
            base_weights=c.base_weights,
            attention=c.attention,
        )

    @cached_property
    def learner(self) -> Learner:
        """The run's learner. Raises UserError if its rows do not divide over the mesh."""
        c = self.config
        check_rows(self.mesh, "prompts_per_step", c.prompts_per_step)
        mini = passes_of(c).rows(c.prompts_per_step, c.num_generations) // c.num_minibatches
        check_rows(self.mesh, "micro_batch_size", c.micro_batch_size or mini)
        return learner_of(c, self.policy, optimizer_of(c, schedule_of(c)))

    @property
    def device_bytes(self) -> int:
        """The memory of each device."""
        return chip_of(self.target).memory

    @property
    def usable(self) -> int:
        """Bytes of each device that a run may fill."""
        return int(memory_budget.USABLE * self.device_bytes)

    @cached_property
    def held(self) -> dict[str, int]:
        """Bytes that each device holds from the first step to the last, by purpose."""
        models = sum(weight_bytes(cfg, self.mesh, self.policy.dtype) for cfg in self.reward_models.values())
        return memory_budget.held_always(self.config, self.policy, self.learner.abstract_state, models)

    @cached_property
    def reward_models(self) -> dict[str, ModelConfig]:
        """Folder or hub id -> shape of each reward model."""
        names = (spec.removeprefix(PREFIX) for spec in self.config.rewards if spec.startswith(PREFIX))
        return {name: _judge_shape(name) for name in names}

    @cached_property
    def rows(self) -> int:
        """Completions under way at a time; 0 for all. Raises UserError if a single prompt's do not fit."""
        given = self.config.rollout_memory
        left = self.usable - sum(self.held.values()) - memory_budget.copy_bytes(self.policy)
        memory = int(given * 2**30) if given else left
        return memory_budget.rows_at_a_time(self.demand, memory, self.config)

    @cached_property
    def demand(self) -> Demand:
        """The memory demand of the rollouts."""
        return memory_budget.training_demand(self.config, self.policy)

    @property
    def size(self) -> TableSize:
        """The size of the rollout's largest table, on each part of the mesh."""
        return self.demand.size(self.rows)

    @property
    def base(self) -> Base | None:
        """The frozen weights beside adapters, as shapes; None without LoRA."""
        shapes = self.policy.abstract_base()
        return (
            None
            if shapes is None
            else Base(_placed(shapes.params, self.policy.base_shardings()), shapes.scale)
        )

    def jobs(self) -> list[Job]:
        """The programs of a step, in the order in which they run."""
        return [
            *self._weight_sync(),
            *self._rollout(),
            *self._reward_model_jobs(),
            *self._score(),
            self.update(),
        ]

    @property
    def _whole(self) -> Any:
        """All weights of the model as the learner holds them, as shapes."""
        return joined(self.learner.abstract_state.params, self.base)

    @property
    def _scored(self) -> Any:
        """The weights that compute log-probs, as shapes: with several updates per rollout the learner's own (which need
        more memory, because they are cast first), otherwise the reference."""
        learner, dtype = self.learner, jnp.dtype(self.policy.dtype)
        if learner.passes.updates > 1:
            return self._whole
        narrow = jax.eval_shape(lambda p: cast(p, dtype), learner.abstract_state.params)
        return joined(_placed(narrow, learner.reference_shardings), self.base)

    def _beside(self, arguments: Any) -> int:
        """Bytes that each device always holds, less those of these arguments."""
        return sum(self.held.values()) - bytes_of(arguments)

    def _weight_sync(self) -> list[Job]:
        """The copy of the last layer to the sampler, when it has all the others."""
        of_layer, _ = arguments(self._whole)
        outside = self._beside(of_layer) + memory_budget.copy_bytes(self.policy)
        return [Job("copy", self.policy.weight_sync.layer, of_layer, outside, [])]

    def _rollout(self) -> list[Job]:
        c, mesh, dtype = self.config, self.mesh, jnp.dtype(self.policy.dtype)
        sampling = SamplingParams(
            c.temperature,
            top_k=c.top_k,
            top_p=c.top_p,
            min_p=c.min_p,
            repetition_penalty=c.repetition_penalty,
        )
        count = min(c.rollout_segment or c.max_completion_length, c.max_completion_length)
        decoder = Decoder(
            self.cfg,
            self.policy.vocabulary,
            sampling,
            cache_dtype=c.rollout_cache,
            attention=c.attention,
        )
        programs, held = Programs(decoder, count, mesh), sum(self.held.values())
        with jax.set_mesh(mesh):
            state = _state(programs, self.size, c.max_prompt_length, dtype, mesh)
        copy = abstract_arguments.by_layer(
            _placed(self.policy.abstract_rollout(), self.policy.rollout_shardings()), mesh
        )
        key = abstract_arguments.prompts(mesh, 1, 1)[-1]
        batch = self._prefill_batch()
        return [
            Job("prompts", programs.prefill, (copy, key, state, batch), held, []),
            Job("rollout", programs.decode, (copy, state), held, [count]),
        ]

    def _reward_model_jobs(self) -> list[Job]:
        """A call of each reward model on its longest rows, while the sampler's copy still exists."""
        return [self._reward_model_job(name, cfg) for name, cfg in self.reward_models.items()]

    def _reward_model_job(self, name: str, cfg: ModelConfig) -> Job:
        c, rows = self.config, ROWS_EACH * row_shards(self.mesh)
        array = partial(abstract_arguments.array, by_rows(self.mesh))
        width = bucket(c.max_prompt_length + c.max_completion_length, cfg.max_position_embeddings)
        weights = abstract_reward_model(cfg, self.mesh, self.policy.dtype)
        given = weights, array(jnp.int32, rows, width), array(jnp.int32, rows)
        beside = self._beside(weights) + memory_budget.copy_bytes(self.policy)
        return Job(f"reward {column_of(name)}", scoring_program(cfg, c.attention), given, beside, [])

    def _prefill_batch(self) -> PrefillBatch:
        c, size, parts = self.config, self.size, row_shards(self.mesh)
        times = -(-c.num_generations // size.rows)
        m = min(prompts_per_prefill(c.max_prompt_length), size.places // times) * parts
        array = partial(abstract_arguments.array, by_rows(self.mesh))
        return PrefillBatch(
            tokens=array(jnp.int32, m, c.max_prompt_length),
            lengths=array(jnp.int32, m),
            uids=array(jnp.uint32, m),
            places=array(jnp.int32, m, times),
            limits=array(jnp.int32, m, times, size.rows),
        )

    def _score(self) -> list[Job]:
        """The pass that computes log-probs of the reference or of the old policy; empty if neither is needed."""
        c = self.config
        if not (c.beta or self.learner.passes.updates > 1):
            return []
        rows = abstract_arguments.rows(self.mesh, self._mini, c.max_prompt_length, self._width)
        given, beside = (self._scored, rows), self._beside(self._scored) + self._streamed
        return [Job("score", self.learner.score, given, beside, [self.learner.micro_batches])]

    @property
    def _streamed(self) -> int:
        """Bytes of a reference in host memory that are on a device at a time: the weights outside the layers, the
        current layer and the next one. 0 if JAX knows the host memory of the device: the compiler counts them then."""
        if self._waits and not chip_of(self.target).knows_host:
            whole, layers = map(bytes_of, (self._scored, self._scored["layers"]))
            return whole - layers + 2 * layers // self.cfg.num_layers
        return 0

    @property
    def _waits(self) -> bool:
        c, passes = self.config, self.learner.passes
        return c.reference_memory == "host" and passes.updates == 1 and not c.lora_r

    def update(self) -> Job:
        """The program of the update."""
        c, learner = self.config, self.learner
        batch = abstract_arguments.batch(
            self.mesh,
            self._mini,
            c.max_prompt_length,
            self._width,
            old=learner.passes.updates > 1,
            reference=c.beta > 0,
            ends=learner.widths and len(widths(self._width, learner.widths)),
        )
        given = learner.abstract_state, batch, self.base
        beside = 0 if c.sync_ref_model else self.held["reference"]  # one that moves is in the state
        beside += self.held.get("reward models", 0)
        return Job("update", learner.update, given, beside, [learner.micro_batches])

    @property
    def _mini(self) -> int:
        c = self.config
        return self.learner.passes.rows(c.prompts_per_step, c.num_generations) // c.num_minibatches

    @property
    def _width(self) -> int:
        return bucket(self.config.max_completion_length, self.config.max_completion_length)


def _judge_shape(name: str) -> ModelConfig:
    """A reward model's shape. Raises UserError if a folder holds another kind of model."""
    shape = shape_of(name, "rewards: model")
    if Path(name).is_dir():
        check_architecture(Path(name))
    return shape


def shape_of(model: str, field: str = "model") -> ModelConfig:
    """A model's shape: from a folder's config.json, from the name of a published size (Qwen/Qwen2.5-7B-Instruct, 7b),
    or from the hub."""
    if not Path(model).is_dir() and (
        size := re.search(r"(?:^|Qwen2\.5-(?:Math-|Coder-)?)([\d.]+b)\b", model, re.I)
    ):
        if size[1].lower() in PUBLISHED:
            return PUBLISHED[size[1].lower()]
        raise UserError(f"{field} = {model}: no published size {size[1]}; there are {', '.join(PUBLISHED)}")
    if model == "demo":
        from grpo_jax.models.config import SHAPE

        return SHAPE
    return hf.load_config(hf.resolve_model(model, field))


def _state(programs: Programs, size: TableSize, prompt_width: int, dtype: np.dtype, mesh: Mesh) -> Any:
    """The rollout's table as shapes with shardings."""
    shapes = jax.eval_shape(lambda: programs.trace_empty_state(size, prompt_width, dtype))
    heads = lambda x, spec: _array(x, NamedSharding(mesh, PartitionSpec(*spec)))
    rows = jax.tree.map(lambda x: _array(x, by_rows(mesh)), shapes)
    layers = tuple(
        layer.mapped(lambda x: heads(x, (ROWS, "tensor")), lambda x, _: heads(x, (ROWS, None, "tensor")))
        for layer in shapes.cache.layers
    )
    seen = jax.tree.map(lambda x: heads(x, (ROWS, None, "tensor")), shapes.seen)
    return replace(rows, cache=replace(rows.cache, layers=layers), seen=seen)


def _placed(shapes: Any, places: Any) -> Any:
    return jax.tree.map(_array, shapes, places)


def _array(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
