"""A model folder opened for work: its configuration, tokenizer, stop ids and the mesh. Weights come separately, so
that everything that can be wrong is found before any of them is read."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.config import ModelSettings, parse_mesh
from grpo_jax.errors import UserError
from grpo_jax.models import hf
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.load import at, check_tensors
from grpo_jax.models.quantized import quantize_leaf
from grpo_jax.models.qwen import Params, abstract_params, sampler_weights
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.programs import Program
from grpo_jax.rollout.generate import Vocabulary, decoding_program
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings


@dataclass(frozen=True)
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

    def load_weights(self) -> Params:
        """Float32 master weights, each device's part read from the files straight to it."""
        return hf.load_params(self.folder, self.cfg, self.train_shardings(), "float32")

    def load_rollout_weights(self) -> Params:
        """The weights straight in the sampler's form and layout, where nothing is trained."""
        return decoding_program(self.mesh)(self._load_stacked())

    def _load_stacked(self) -> Params:
        plain = shardings(abstract_params(self.cfg), ROLLOUT_RULES, self.mesh)
        if self.rollout_weights == "auto":
            return hf.load_params(self.folder, self.cfg, plain, self.dtype)
        return hf.load_params(self.folder, self.cfg, plain, self.dtype, self._quantized)

    def _quantized(self, path: tuple[str, ...], x: jax.Array) -> Any:
        """A leaf that was read, when its wide form is no longer needed: one is on the devices at a time."""
        target = at(self.rollout_shardings(), path)
        program = jax.jit(quantize_leaf, static_argnums=(0, 2), out_shardings=target)
        return jax.block_until_ready(program(path, x, self.dtype))

    def check_positions(self, field: str, tokens: int) -> None:
        """UserError for rows longer than the positions that the model was made for."""
        if tokens > self.cfg.max_position_embeddings:
            raise UserError(
                f"{field} = {tokens}: {self.folder} has {self.cfg.max_position_embeddings} positions "
                "(max_position_embeddings); choose less"
            )

    def train_shardings(self) -> Params:
        """Where the weights lie while training."""
        return shardings(abstract_params(self.cfg), TRAIN_RULES, self.mesh)

    def abstract_rollout(self) -> Params:
        """The sampler's weights as shapes."""
        form = partial(sampler_weights, dtype=jnp.dtype(self.dtype), form=self.rollout_weights)
        return jax.eval_shape(form, abstract_params(self.cfg))

    def rollout_shardings(self) -> Params:
        """Where the weights lie while sampling."""
        return shardings(self.abstract_rollout(), ROLLOUT_RULES, self.mesh)

    @property
    def shares_weights(self) -> bool:
        """Whether the sampler's copy is of the learner's own dtype, laid alike."""
        if self.dtype != "float32" or self.rollout_weights != "auto":
            return False
        alike = lambda x, a, b: a.is_equivalent_to(b, len(x.shape))
        layouts = abstract_params(self.cfg), self.train_shardings(), self.rollout_shardings()
        return all(jax.tree.leaves(jax.tree.map(alike, *layouts)))

    def rollout_copy(self, params: Params) -> Params:
        """The weights in the sampler's form and layout, made on the devices."""
        if not self.shares_weights:
            params = refresh_program(self.cfg, self.mesh, self.dtype, self.rollout_weights)(params)
        return decoding_program(self.mesh)(params)


@cache
def refresh_program(cfg: ModelConfig, mesh: Mesh, dtype: str, form: str) -> Program:
    """The program master weights -> the sampler's weights in `form`."""
    convert = partial(sampler_weights, dtype=jnp.dtype(dtype), form=form)
    target = shardings(jax.eval_shape(convert, abstract_params(cfg)), ROLLOUT_RULES, mesh)
    return Program("refresh", convert, out_shardings=target)


def open_policy(
    config: ModelSettings,
    model: str | Path | None = None,
    tokenizer: Any = None,
    rollout_weights: str = "auto",
    rollout_cache: str = "auto",
) -> Policy:
    """Open the folder or hub id that the settings name, or `model`, with its own tokenizer unless one is given.

    UserError for whatever is wrong with it, the weights' files included, of which only the headers are read.
    """
    if config.dtype == "float32":  # as asked: matrix units of accelerators would round to less
        jax.config.update("jax_default_matmul_precision", "highest")
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    folder = hf.resolve_model(str(model or config.model))
    cfg = hf.load_config(folder)
    check_tensors(open_folder(folder), cfg, folder)
    tokenizer = tokenizer or hf.load_tokenizer(folder)
    hf.check_tokenizer(len(tokenizer), cfg)
    return Policy(
        folder,
        cfg,
        tokenizer,
        _vocabulary(folder, tokenizer),
        make_mesh(parse_mesh(config.mesh)),
        compute_dtype(config.dtype),
        rollout_weights,
        rollout_cache,
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
