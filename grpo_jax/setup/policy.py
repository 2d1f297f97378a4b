"""An opened model folder: its configuration, tokenizer, stop ids and the mesh. Weights are loaded separately, so that
every error in the folder is found before they are read."""

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
from grpo_jax.models.peft import check_adapters, read_lora
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.models.transformer import Params, abstract_params, abstract_trained, in_form, sampler_weights
from grpo_jax.rollout.programs import Vocabulary
from grpo_jax.runs.status import phase
from grpo_jax.setup.weight_sync import SamplerCopy
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.mesh_spec import parse_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Everything about the model but its weights."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    vocabulary: Vocabulary
    mesh: Mesh
    dtype: str  # compute dtype
    rollout_weights: str = "auto"  # the sampler's weights: in the compute dtype (auto), or int8
    rollout_cache: str = "auto"  # the sampler's keys and values: the same choice
    lora: LoRA | None = None  # adapters: trained, or merged when nothing is trained
    adapter: Path | None = None  # folder that adapters are loaded from
    base_weights: str = "auto"  # frozen weights beside adapters: in the compute dtype (auto), int8 or nf4
    attention: Kernel = "auto"  # kernel for whole rows
    tokenizer_folder: Path | None = None  # where the tokenizer was read; None if it was given from Python

    @property
    def tokenizer_source(self) -> Any:
        """The tokenizer as it is written beside weights: its folder, or the object; the model's own for an object that
        cannot write itself."""
        if self.tokenizer_folder is not None:
            return self.tokenizer_folder
        return self.tokenizer if hasattr(self.tokenizer, "save_pretrained") else self.folder

    def check_positions(self, field: str, tokens: int) -> None:
        """UserError for rows longer than the model's max_position_embeddings; `field` is the setting to name."""
        if tokens > self.cfg.max_position_embeddings:
            raise UserError(
                f"{field} = {tokens}: {self.folder} has {self.cfg.max_position_embeddings} positions "
                "(max_position_embeddings); choose less"
            )

    def abstract_trained(self) -> Params:
        """The trained parameters as shapes in float32."""
        return abstract_trained(self.cfg, self.lora)

    def train_shardings(self) -> Params:
        """Shardings of the trained parameters."""
        return shardings(self.abstract_trained(), TRAIN_RULES, self.mesh)

    def abstract_base(self) -> Base | None:
        """The frozen base weights as shapes; None without adapters."""
        if self.lora is None:
            return None
        form = partial(in_form, dtype=jnp.dtype(self.dtype), form=self.base_weights)
        return Base(jax.eval_shape(form, abstract_params(self.cfg)), self.lora.scale)

    def base_shardings(self) -> Params:
        """Shardings of the frozen base weights; empty without adapters."""
        base = self.abstract_base()
        return {} if base is None else shardings(base.params, TRAIN_RULES, self.mesh)

    def abstract_rollout(self) -> Params:
        """The sampler's weights as shapes, layers stacked."""
        form = partial(sampler_weights, dtype=jnp.dtype(self.dtype), form=self.rollout_weights)
        return jax.eval_shape(
            lambda *whole: form(joined(*whole)), self.abstract_trained(), self.abstract_base()
        )

    def rollout_shardings(self) -> Params:
        """Shardings of the sampler's weights."""
        return shardings(self.abstract_rollout(), ROLLOUT_RULES, self.mesh)

    def rollout_copy(self, params: Params) -> Params:
        """A copy of the whole model's weights in the sampler's form and layout, layers apart, made on the devices."""
        return self.weight_sync(params)

    @cached_property
    def weight_sync(self) -> SamplerCopy:
        """The programs that make this copy."""
        return SamplerCopy(self.dtype, self.rollout_weights, self.rollout_shardings(), self.mesh)


def open_policy(
    config: ModelSettings,
    model: str | Path | None = None,
    tokenizer: Any = None,
    *,
    tokenizer_folder: Path | None = None,
    rollout_weights: str = "auto",
    rollout_cache: str = "auto",
    lora: LoRA | None = None,
    base_weights: str = "auto",
) -> Policy:
    """Open the folder or hub id that the settings name, or `model`, with its own tokenizer unless one is given, or the
    folder of one.

    UserError for every fault of the folder, its weight files included; only their headers are read.
    """
    if config.dtype == "float32":  # accelerators would otherwise multiply matrices in lower precision
        jax.config.update("jax_default_matmul_precision", "highest")
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    dtype, mesh = compute_dtype(config.dtype), make_mesh(parse_mesh(config.mesh))
    check_kernel(config.attention, mesh.devices.flat[0].platform, dtype)
    with phase("opening the model"):
        folder = hf.resolve_model(str(model or config.model))
        cfg = hf.load_config(folder)
        check_tensors(open_folder(folder), cfg, folder)
        adapter = None if config.adapter is None else hf.resolve_model(config.adapter, "adapter")
        if tokenizer is None:
            tokenizer_folder = tokenizer_folder or folder
            tokenizer = hf.load_tokenizer(tokenizer_folder)
    hf.check_tokenizer(len(tokenizer), cfg)
    if adapter is not None:
        lora = read_lora(adapter)
        check_adapters(adapter, cfg, lora)
    return Policy(
        folder=folder,
        cfg=cfg,
        tokenizer=tokenizer,
        vocabulary=_vocabulary(folder, tokenizer, cfg.vocab_size),
        mesh=mesh,
        dtype=dtype,
        rollout_weights=rollout_weights,
        rollout_cache=rollout_cache,
        lora=lora,
        adapter=adapter,
        base_weights=base_weights,
        attention=config.attention,
        tokenizer_folder=tokenizer_folder,
    )


def compute_dtype(dtype: str) -> str:
    """The compute dtype: `auto` is bfloat16 on accelerators and float32 on CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _vocabulary(folder: Path, tokenizer: Any, vocab_size: int) -> Vocabulary:
    """All end-of-sequence ids in the model's files. Padding is always masked, so any id serves as the padding id."""
    eos_ids = hf.load_eos_ids(folder) or (
        (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
    )
    if not eos_ids:
        raise UserError(
            f"{folder}: no eos_token_id in generation_config.json, config.json or the tokenizer; add one"
        )
    if min(eos_ids) >= vocab_size:
        raise UserError(
            f"{folder}: eos_token_id {eos_ids[0]} is beyond the vocabulary of {vocab_size}; no completion would end"
        )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Vocabulary(tuple(eos_ids), pad_id, len(tokenizer))
