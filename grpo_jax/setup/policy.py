"""A model folder opened for work: its configuration, tokenizer, stop ids and the mesh. Weights come separately, so
that everything that can be wrong is found before any of them is read."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.config.model import ModelSettings
from grpo_jax.errors import UserError
from grpo_jax.models import hf
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel, check_kernel
from grpo_jax.models.load import check_tensors
from grpo_jax.models.lora import Base, LoRA, joined
from grpo_jax.models.peft import read_lora
from grpo_jax.models.qwen import Params, abstract_params, abstract_trained, in_form, sampler_weights
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.rollout.programs import Vocabulary
from grpo_jax.setup.weight_sync import SamplerCopy
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.mesh_spec import parse_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the stages need to know about the model, besides its weights."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    vocabulary: Vocabulary
    mesh: Mesh
    dtype: str  # of the computation
    rollout_weights: str = "auto"  # the sampler's: in that dtype, or int8
    rollout_cache: str = "auto"  # its keys and values: the same choice
    lora: LoRA | None = None  # of the adapters that are trained, or merged where nothing is
    adapter: Path | None = None  # a folder where adapters come from
    base_weights: str = "auto"  # what adapters stand beside: in that dtype, int8 or nf4
    attention: Kernel = "auto"  # of whole rows

    def check_positions(self, field: str, tokens: int) -> None:
        """UserError for rows longer than the positions that the model was made for."""
        if tokens > self.cfg.max_position_embeddings:
            raise UserError(
                f"{field} = {tokens}: {self.folder} has {self.cfg.max_position_embeddings} positions "
                "(max_position_embeddings); choose less"
            )

    def abstract_trained(self) -> Params:
        """What is trained, as shapes in float32."""
        return abstract_trained(self.cfg, self.lora)

    def train_shardings(self) -> Params:
        """Where what is trained lies."""
        return shardings(self.abstract_trained(), TRAIN_RULES, self.mesh)

    def abstract_base(self) -> Base | None:
        """The weights that adapters stand beside, as shapes."""
        if self.lora is None:
            return None
        form = partial(in_form, dtype=jnp.dtype(self.dtype), form=self.base_weights)
        return Base(jax.eval_shape(form, abstract_params(self.cfg)), self.lora.scale)

    def base_shardings(self) -> Params:
        """Where they lie."""
        base = self.abstract_base()
        return {} if base is None else shardings(base.params, TRAIN_RULES, self.mesh)

    def abstract_rollout(self) -> Params:
        """The sampler's weights as shapes, layers stacked."""
        form = partial(sampler_weights, dtype=jnp.dtype(self.dtype), form=self.rollout_weights)
        return jax.eval_shape(
            lambda *whole: form(joined(*whole)), self.abstract_trained(), self.abstract_base()
        )

    def rollout_shardings(self) -> Params:
        """Where the weights lie while sampling."""
        return shardings(self.abstract_rollout(), ROLLOUT_RULES, self.mesh)

    def rollout_copy(self, params: Params) -> Params:
        """The whole model's weights in the sampler's form and layout, layers apart, made on the devices."""
        return self.copying(params)

    @cached_property
    def copying(self) -> SamplerCopy:
        """What makes that copy."""
        return SamplerCopy(self.dtype, self.rollout_weights, self.rollout_shardings(), self.mesh)


def open_policy(
    config: ModelSettings,
    model: str | Path | None = None,
    tokenizer: Any = None,
    *,
    rollout_weights: str = "auto",
    rollout_cache: str = "auto",
    lora: LoRA | None = None,
    base_weights: str = "auto",
) -> Policy:
    """Open the folder or hub id that the settings name, or `model`, with its own tokenizer unless one is given.

    UserError for whatever is wrong with it, the weights' files included, of which only the headers are read.
    """
    if config.dtype == "float32":  # as asked: matrix units of accelerators would round to less
        jax.config.update("jax_default_matmul_precision", "highest")
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    dtype, mesh = compute_dtype(config.dtype), make_mesh(parse_mesh(config.mesh))
    check_kernel(config.attention, mesh.devices.flat[0].platform, dtype)
    folder = hf.resolve_model(str(model or config.model))
    cfg = hf.load_config(folder)
    check_tensors(open_folder(folder), cfg, folder)
    adapter = None if config.adapter is None else hf.resolve_model(config.adapter, "adapter")
    tokenizer = tokenizer or hf.load_tokenizer(folder)
    hf.check_tokenizer(len(tokenizer), cfg)
    return Policy(
        folder=folder,
        cfg=cfg,
        tokenizer=tokenizer,
        vocabulary=_vocabulary(folder, tokenizer),
        mesh=mesh,
        dtype=dtype,
        rollout_weights=rollout_weights,
        rollout_cache=rollout_cache,
        lora=lora if adapter is None else read_lora(adapter),
        adapter=adapter,
        base_weights=base_weights,
        attention=config.attention,
    )


def compute_dtype(dtype: str) -> str:
    """`auto` is bfloat16 on accelerators, where matrix units are made for it, and float32 on CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _vocabulary(folder: Path, tokenizer: Any) -> Vocabulary:
    """Every end-of-sequence id of the model's own files; the padding id is never looked at, so any id will do."""
    eos_ids = hf.load_eos_ids(folder) or (
        (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
    )
    if not eos_ids:
        raise UserError(
            f"{folder}: no eos_token_id in generation_config.json, config.json or the tokenizer; add one"
        )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Vocabulary(tuple(eos_ids), pad_id, len(tokenizer))
