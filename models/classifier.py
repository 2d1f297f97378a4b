"""Reward models: sequence classifiers with one label, on the same backbone.

The score of a row is the product of `score.weight` with the last hidden state at the row's last token, as in
transformers' classes `...ForSequenceClassification`; there is no bias, and no head over the vocabulary.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.errors import UserError
from grpo_jax.models.attention import whole_rows
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_json
from grpo_jax.models.families import family_named, rows
from grpo_jax.models.hf_config import load_config
from grpo_jax.models.kernels import Kernel
from grpo_jax.models.load import check_tensors, load_params
from grpo_jax.models.matrices import product
from grpo_jax.models.names import SCORE
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.models.transformer import Params, abstract_params, cast, hidden_states


def open_classifier(folder: Path) -> ModelConfig:
    """The shape of the classifier in `folder`. Reads only the headers of its weights.

    Raises:
        UserError: it has another architecture or several labels, or the model's folder is faulty.
    """
    cfg = _without_head(load_config(folder))
    check_architecture(folder)
    tensors = open_folder(folder)
    if SCORE.name in tensors and tensors[SCORE.name].shape[0] != 1:
        raise UserError(
            f"{folder}: {SCORE.name} has {tensors[SCORE.name].shape[0]} rows, one for each label (num_labels); a "
            "reward model has one"
        )
    check_tensors(tensors, cfg, folder, [*rows(cfg), SCORE])
    return cfg


def load_classifier(folder: Path, cfg: ModelConfig, shardings: Params | None, dtype: str) -> Params:
    """The weights: the tree of `abstract_classifier`, in `dtype`, each leaf sharded as in the tree `shardings`."""
    return load_params(folder, cfg, shardings, dtype, table=[*rows(cfg), SCORE])


def abstract_classifier(cfg: ModelConfig, dtype: str = "float32") -> Params:
    """The weights as shapes."""
    return _abstract(_without_head(cfg), dtype)


@cache
def _abstract(cfg: ModelConfig, dtype: str) -> Params:
    backbone = jax.eval_shape(partial(cast, dtype=jnp.dtype(dtype)), abstract_params(cfg))
    return {**backbone, "score": {"kernel": jax.ShapeDtypeStruct((cfg.hidden_size, 1), jnp.dtype(dtype))}}


def classifier_scores(
    cfg: ModelConfig, params: Params, tokens: Array, ends: Array, attention: Kernel = "auto"
) -> Array:
    """Scores [B] float32 of rows `tokens` [B,T] int32, right-padded, at their positions `ends` [B] int32.

    The backbone computes in the parameters' dtype; the product with `score` is summed in float32.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = hidden_states(cfg, params, tokens, positions, whole_rows(attention))
    last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]  # [B,D]
    with jax.named_scope("score"):
        return product(last, params["score"]["kernel"], (0,), jnp.float32)[:, 0]


def _without_head(cfg: ModelConfig) -> ModelConfig:
    """The shape without tied embeddings, whatever config.json says: there is no head to tie."""
    return replace(cfg, tie_word_embeddings=True)


def check_architecture(folder: Path) -> None:
    """Raise UserError if config.json is not that of a sequence classifier."""
    raw = read_json(folder / "config.json")
    classifier = family_named(raw.get("model_type"), folder / "config.json").classifier
    found: Any = raw.get("architectures") or ["nothing"]
    if classifier not in found:
        raise UserError(
            f"{folder}/config.json: architectures says {', '.join(map(str, found))}; a reward model is a "
            f"{classifier} with one label, as TRL's RewardTrainer saves"
        )
