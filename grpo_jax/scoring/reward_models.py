"""Reward models: sequence classifiers that score completions on the run's own devices, beside the policy.

A row is the prompt with its answer, through the model's own tokenizer and chat template; its score is what the
classifier says at its last token (`models/classifier.py`). Every host has all rows of a rollout, and so makes the same
calls; a call has a fixed number of rows, and a width that is one of few, so that few programs are compiled.
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
from grpo_jax.models.qwen import Params
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.program import Program
from grpo_jax.rewards.load import load_reward, named_apart
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding import hosts
from grpo_jax.sharding.memory import bytes_of
from grpo_jax.sharding.mesh import by_rows, row_shards
from grpo_jax.sharding.rules import TRAIN_RULES, shardings

ROWS_EACH = 8
"""Rows of a call on each part of the mesh."""


@dataclass(frozen=True)
class Verdicts:
    """What a reward model says of B rows."""

    scores: np.ndarray  # [B] float64, NaN where there is none
    faults: dict[int, str] = field(default_factory=dict)  # row -> why it has none


@dataclass(frozen=True)
class Found:
    """A reward model's folder, checked; of its weights only the headers were read."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    pad_id: int


@dataclass(frozen=True)
class RewardModel:
    """A classifier with its tokenizer on a mesh. Its weights are read when it is first asked."""

    folder: Path
    cfg: ModelConfig
    tokenizer: Any
    pad_id: int
    mesh: Mesh
    dtype: str
    attention: Kernel
    asking: PromptSettings  # what the run puts before and behind a prompt: the model reads it, too

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Verdicts:
        """Scores of B answers to B prompts, which are texts or messages. Every process must call it, inside the mesh.

        UserError: the chat template refuses a conversation.
        """
        ids = self._tokens(prompts, answers)
        scores, faults = np.full(len(ids), np.nan), self._too_long(ids)
        for some in self._calls(ids, faults):
            scores[some] = self._scored([ids[row] for row in some])
            for row in some:
                if not np.isfinite(scores[row]):
                    scores[row], faults[row] = np.nan, f"{self.folder} gave {scores[row]}"
        return Verdicts(scores, faults)

    def check(self, prompts: Prompts) -> None:
        """UserError, naming the row, where the chat template has no words for such a prompt with an answer."""
        for row, prompt in prompts.of_each_kind().items():
            try:
                self._tokens([prompt], ["."])
            except UserError as fault:
                raise UserError(f"rewards: model {self.folder}: dataset, row {row + 1}: {fault}") from None

    @property
    def positions(self) -> int:
        """Tokens of a row at most."""
        return self.cfg.max_position_embeddings

    @property
    def rows(self) -> int:
        """Of a call."""
        return ROWS_EACH * row_shards(self.mesh)

    @property
    def digest(self) -> str:
        """What tells its weights from others."""
        return sampled_digest(self.folder)

    @property
    def bytes(self) -> int:
        """Of its weights, on each device."""
        return weight_bytes(self.cfg, self.mesh, self.dtype)

    @cached_property
    def program(self) -> Program:
        """(weights, tokens [R,T] int32, ends [R] int32) -> scores [R] float32."""
        return scoring_program(self.cfg, self.attention)

    @cached_property
    def params(self) -> Params:
        """Its weights, read now; each device has its part."""
        return load_classifier(self.folder, self.cfg, _places(self.cfg, self.mesh), self.dtype)

    def _tokens(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[int]]:
        how = self.asking
        asked = [as_asked(prompt, how.system_prompt, how.prefill) for prompt in prompts]
        texts = [
            render_answered(prompt, answer, self.tokenizer, how.chat_template_kwargs)
            for prompt, answer in zip(asked, answers, strict=True)
        ]
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        # A row of nothing has nothing to be scored at: transformers looks at its first padding then.
        return [tokens or [self.pad_id] for tokens in found]

    def _too_long(self, ids: list[list[int]]) -> dict[int, str]:
        """Row -> why it is not scored."""
        where = f"{self.folder} has {self.positions} positions"
        return {
            row: f"prompt and completion are {len(own)} tokens, and {where}"
            for row, own in enumerate(ids)
            if len(own) > self.positions
        }

    def _calls(self, ids: list[list[int]], without: Container[int]) -> Iterator[list[int]]:
        """The rows of each call. Long ones first, so that a call has rows of much the same length, and the first call
        is the largest."""
        order = [row for row in range(len(ids)) if row not in without]
        order.sort(key=lambda row: -len(ids[row]))
        for start in range(0, len(order), self.rows):
            yield order[start : start + self.rows]

    def _scored(self, ids: list[list[int]]) -> np.ndarray:
        """Of at most R rows."""
        tokens = np.full((self.rows, bucket(max(map(len, ids)), self.positions)), self.pad_id, np.int32)
        ends = np.zeros(self.rows, np.int32)
        for row, own in enumerate(ids):
            tokens[row, : len(own)], ends[row] = own, self._end(own)
        where = by_rows(self.mesh)
        scores = self.program(self.params, hosts.put(tokens, where), hosts.put(ends, where))
        return hosts.get(scores)[: len(ids)]

    def _end(self, ids: list[int]) -> int:
        """The place of the last token that is not the padding token, as transformers has it: where a template ends
        with that very token, it is the one before."""
        return next((i for i in reversed(range(len(ids))) if ids[i] != self.pad_id), 0)


def scoring_program(cfg: ModelConfig, attention: Kernel) -> Program:
    """What scores, for any weights of that shape."""
    return Program("reward model", partial(classifier_scores, cfg, attention=attention))


def abstract_reward_model(cfg: ModelConfig, mesh: Mesh, dtype: str) -> Params:
    """A reward model's weights as shapes, where they lie on a mesh. UserError where they do not divide over it."""
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.tree.map(place, abstract_classifier(cfg, dtype), _places(cfg, mesh))


def weight_bytes(cfg: ModelConfig, mesh: Mesh, dtype: str) -> int:
    """What they take on each device."""
    return bytes_of(abstract_reward_model(cfg, mesh, dtype))


def _places(cfg: ModelConfig, mesh: Mesh) -> Params:
    return shardings(abstract_classifier(cfg), TRAIN_RULES, mesh)


def find_reward_models(rewards: Sequence[Any], tokenizers: Sequence[Any] | None = None) -> dict[int, Found]:
    """The models among rewards, by their place there.

    Args:
        tokenizers: one for each reward, or None for the model's own.

    UserError for rewards that cannot be used, those that are no models included: to be called before anything is made
    or opened for them.
    """
    named = named_apart([load_reward(one) for one in rewards])
    given = tokenizers or [None] * len(named)
    return {n: _found(reward.model, given[n]) for n, reward in enumerate(named) if reward.model}


def _found(name: str, tokenizer: Any) -> Found:
    folder = hf.resolve_model(name, "rewards: model")
    cfg = open_classifier(folder)
    tokenizer = tokenizer or hf.load_tokenizer(folder)
    hf.check_tokenizer(len(tokenizer), cfg)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_id is None:
        raise UserError(f"{folder}: the tokenizer has neither a pad_token nor an eos_token; give it one")
    return Found(folder, cfg, tokenizer, pad_id)


def open_reward_models(
    found: Mapping[int, Found], policy: Policy, config: PromptSettings
) -> dict[int, RewardModel]:
    """The same on the policy's mesh and in its dtype. UserError where one does not divide over that. No weights are
    read."""
    return {n: _opened(one, policy, config) for n, one in found.items()}


def _opened(of: Found, policy: Policy, config: PromptSettings) -> RewardModel:
    weight_bytes(of.cfg, policy.mesh, policy.dtype)
    own = of.folder, of.cfg, of.tokenizer, of.pad_id
    return RewardModel(*own, policy.mesh, policy.dtype, policy.attention, config)
