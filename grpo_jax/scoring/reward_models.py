"""Reward models: sequence classifiers that score completions on the run's devices, beside the policy.

A row is the prompt with its answer, in the model's own tokenizer and chat template; its score is the classifier's
output at the last token (`models/classifier.py`). Every host has all rows of a rollout and makes the same calls. A call
has a fixed number of rows and one of a few widths, so that few programs are compiled.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.config.prompts import PromptSettings
from grpo_jax.data.chat import Prompt, as_asked, render_answered
from grpo_jax.data.prompts import Prompts
from grpo_jax.errors import UserError
from grpo_jax.learner.batches import bucket
from grpo_jax.models import hf
from grpo_jax.models.classifier import (
    abstract_classifier,
    classifier_scores,
    load_classifier,
    open_classifier,
)
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.models.transformer import Params
from grpo_jax.program import Program
from grpo_jax.rewards.load import load_reward, named_apart
from grpo_jax.runs.status import phase
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding import hosts
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.mesh import by_rows, row_shards
from grpo_jax.sharding.rules import TRAIN_RULES, shardings

ROWS_EACH = 8
"""Rows per call on each part of the mesh."""


@dataclass(frozen=True)
class Verdicts:
    """A reward model's scores of B rows."""

    scores: np.ndarray  # [B] float64, NaN where there is none
    faults: dict[int, str] = field(default_factory=dict)  # row -> why it has none


@dataclass(frozen=True)
class CheckedModel:
    """The folder of a reward model, checked without reading its weights (only their headers)."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    pad_id: int


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A classifier with its tokenizer on a mesh. Its weights are read at the first call."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    pad_id: int
    mesh: Mesh
    dtype: str
    attention: Kernel
    prompt_settings: (
        PromptSettings  # the run's system prompt, prefill and template options, which the model sees too
    )

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Verdicts:
        """Scores of B answers to B prompts (texts or messages). Collective; call it inside the mesh.

        Raises:
            UserError: the chat template refuses a conversation.
        """
        ids = self._tokens(prompts, answers)
        scores, faults = np.full(len(ids), np.nan), self._too_long(ids)
        for rows in self._calls(ids, faults):
            scores[rows] = self._scored([ids[row] for row in rows])
            for row in rows:
                if not np.isfinite(scores[row]):
                    scores[row], faults[row] = np.nan, f"{self.folder} gave {scores[row]}"
        return Verdicts(scores, faults)

    def check(self, prompts: Prompts) -> None:
        """Raise UserError, naming the row, if the chat template cannot render such a prompt with an answer."""
        for row, prompt in prompts.of_each_kind().items():
            try:
                self._tokens([prompt], ["."])
            except UserError as fault:
                raise UserError(f"rewards: model {self.folder}: dataset, row {row + 1}: {fault}") from None

    @property
    def positions(self) -> int:
        """The most tokens of a row."""
        return self.cfg.max_position_embeddings

    @property
    def rows(self) -> int:
        """Rows per call."""
        return ROWS_EACH * row_shards(self.mesh)

    @property
    def digest(self) -> str:
        """Identifies the weights."""
        return sampled_digest(self.folder)

    @property
    def bytes(self) -> int:
        """Bytes of the weights on each device."""
        return weight_bytes(self.cfg, self.mesh, self.dtype)

    @cached_property
    def program(self) -> Program:
        """(weights, tokens [R,T] int32, ends [R] int32) -> scores [R] float32."""
        return scoring_program(self.cfg, self.attention)

    @cached_property
    def params(self) -> Params:
        """The weights, sharded over the mesh. Read at the first access."""
        with phase(f"loading the reward model {self.folder}"):
            return load_classifier(self.folder, self.cfg, _places(self.cfg, self.mesh), self.dtype)

    def _tokens(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[int]]:
        settings = self.prompt_settings
        asked = [as_asked(prompt, settings.system_prompt, settings.prefill) for prompt in prompts]
        texts = [
            render_answered(prompt, answer, self.tokenizer, settings.chat_template_kwargs)
            for prompt, answer in zip(asked, answers, strict=True)
        ]
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        # An empty row has no last token: like transformers, score it at its first padding token.
        return [tokens or [self.pad_id] for tokens in ids]

    def _too_long(self, ids: list[list[int]]) -> dict[int, str]:
        """Row -> why it is not scored."""
        limit = f"{self.folder} has {self.positions} positions"
        return {
            row: f"prompt and completion are {len(own)} tokens, and {limit}"
            for row, own in enumerate(ids)
            if len(own) > self.positions
        }

    def _calls(self, ids: list[list[int]], without: Container[int]) -> Iterator[list[int]]:
        """The rows of each call, longest first, so that the rows of a call have similar lengths and the first call is
        the largest."""
        order = [row for row in range(len(ids)) if row not in without]
        order.sort(key=lambda row: -len(ids[row]))
        for start in range(0, len(order), self.rows):
            yield order[start : start + self.rows]

    def _scored(self, ids: list[list[int]]) -> np.ndarray:
        """Scores of at most R rows, from one call."""
        tokens = np.full((self.rows, bucket(max(map(len, ids)), self.positions)), self.pad_id, np.int32)
        ends = np.zeros(self.rows, np.int32)
        for row, own in enumerate(ids):
            tokens[row, : len(own)], ends[row] = own, self._end(own)
        sharding = by_rows(self.mesh)
        scores = self.program(self.params, hosts.put(tokens, sharding), hosts.put(ends, sharding))
        return hosts.get(scores)[: len(ids)]

    def _end(self, ids: list[int]) -> int:
        """The index of the last token that is not the padding token, as in transformers (also if the template itself
        ends with that token)."""
        return next((i for i in reversed(range(len(ids))) if ids[i] != self.pad_id), 0)


def scoring_program(cfg: ModelConfig, attention: Kernel) -> Program:
    """The program that scores rows, for any weights of that shape."""
    return Program("reward model", partial(classifier_scores, cfg, attention=attention))


def abstract_reward_model(cfg: ModelConfig, mesh: Mesh, dtype: str) -> Params:
    """A reward model's weights as shapes with shardings. Raises UserError if they do not divide over the mesh."""
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, abstract_classifier(cfg, dtype), _places(cfg, mesh))


def weight_bytes(cfg: ModelConfig, mesh: Mesh, dtype: str) -> int:
    """Bytes of a reward model's weights on each device."""
    return bytes_of(abstract_reward_model(cfg, mesh, dtype))


def _places(cfg: ModelConfig, mesh: Mesh) -> Params:
    return shardings(abstract_classifier(cfg), TRAIN_RULES, mesh)


def find_reward_models(
    rewards: Sequence[Any], tokenizers: Sequence[Any] | None = None
) -> dict[int, CheckedModel]:
    """The reward models among the rewards: index -> checked folder. Call it before anything is made for the rewards.

    Args:
        tokenizers: one per reward; None for the model's own.

    Raises:
        UserError: a reward, whether a model or a function, cannot be used.
    """
    named = named_apart([load_reward(one) for one in rewards])
    given = tokenizers or [None] * len(named)
    return {n: _found(reward.model, given[n]) for n, reward in enumerate(named) if reward.model}


def _found(name: str, tokenizer: Any) -> CheckedModel:
    folder = hf.resolve_model(name, "rewards: model")
    cfg = open_classifier(folder)
    tokenizer = tokenizer or hf.load_tokenizer(folder)
    hf.check_tokenizer(len(tokenizer), cfg)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_id is None:
        raise UserError(f"{folder}: the tokenizer has neither a pad_token nor an eos_token; give it one")
    return CheckedModel(folder, cfg, tokenizer, pad_id)


def open_reward_models(
    checked: Mapping[int, CheckedModel], policy: Policy, config: PromptSettings
) -> dict[int, RewardModel]:
    """The reward models on the policy's mesh and in its dtype. Reads no weights.

    Raises:
        UserError: a model does not divide over the mesh.
    """
    return {n: _opened(model, policy, config) for n, model in checked.items()}


def _opened(checked: CheckedModel, policy: Policy, config: PromptSettings) -> RewardModel:
    weight_bytes(checked.cfg, policy.mesh, policy.dtype)  # raises if it does not divide
    return RewardModel(
        folder=checked.folder,
        cfg=checked.cfg,
        tokenizer=checked.tokenizer,
        pad_id=checked.pad_id,
        mesh=policy.mesh,
        dtype=policy.dtype,
        attention=policy.attention,
        prompt_settings=config,
    )
