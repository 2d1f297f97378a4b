"""Supervised rows: prompt and completion pairs, in batches that are a function of the step.

The prompt is tokenised as the sampler would give it to the model, and the completion by itself, ended by the
end-of-sequence token: training sees exactly the tokens that a rollout of these words would consist of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax.data.chat import encode
from grpo_jax.data.layouts import arrange
from grpo_jax.data.order import epoch_order
from grpo_jax.data.prompts import bucket, encode_all, render_all
from grpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ExampleBatch:
    """B rows, each part padded on the right."""

    prompts: np.ndarray
    """int32 [B, Tp]."""
    prompt_lengths: np.ndarray
    """int32 [B]."""
    completions: np.ndarray
    """int32 [B, Tc]."""
    completion_lengths: np.ndarray
    """int32 [B], end-of-sequence token included."""


class Examples:
    """A data set of prompts and completions, tokenised once; `examples(step)` is the batch of a step.

    The draws form one infinite sequence, epoch after epoch, each in an order that (seed, epoch) decides. Rows
    of more than `max_length` tokens are left out, never cut: `dropped` counts them, `len()` the others.
    UserError: no rows, a missing column, a row without a usable prompt or completion, or none short enough.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        rows_per_step: int,
        max_length: int,
        eos_id: int,
        pad_id: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        system_prompt: str | None = None,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        layout: str | None = None,
    ):
        self.rows_per_step, self.pad_id = rows_per_step, pad_id
        self.seed, self.shuffle = seed, shuffle
        arranged = arrange(rows, prompt_column, layout, completion_column=completion_column)
        prompts = encode_all(
            arranged, render_all(arranged, tokenizer, system_prompt), tokenizer, system_prompt
        )
        completions = _completion_ids(arranged, tokenizer, completion_column, eos_id)
        pairs = list(zip(prompts, completions))
        self._pairs = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= max_length]
        self.dropped = len(pairs) - len(self._pairs)
        if not self._pairs:
            shortest = min(len(prompt) + len(completion) for prompt, completion in pairs)
            raise UserError(
                f"max_length = {max_length}: all {len(pairs)} rows are longer, from {shortest} tokens on; "
                f"set it to {shortest} or more"
            )
        self._widest = tuple(max(len(pair[part]) for pair in self._pairs) for part in (0, 1))

    def __len__(self) -> int:
        return len(self._pairs)

    def __call__(self, step: int) -> ExampleBatch:
        """The batch of a step: a function of (data, seed, step) alone."""
        first = step * self.rows_per_step
        pairs = [self._pairs[self._draw(i)] for i in range(first, first + self.rows_per_step)]
        (prompts, prompt_lengths), (completions, lengths) = (
            self._padded([pair[part] for pair in pairs], self._widest[part]) for part in (0, 1)
        )
        return ExampleBatch(prompts, prompt_lengths, completions, lengths)

    def _draw(self, index: int) -> int:
        epoch, position = divmod(index, len(self._pairs))
        return int(epoch_order(self.seed, epoch, len(self._pairs))[position]) if self.shuffle else position

    def _padded(
        self, ids: Sequence[Sequence[int] | np.ndarray], widest: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T] in a bucket, and lengths [B]."""
        lengths = np.array([len(one) for one in ids], np.int32)
        tokens = np.full((len(ids), bucket(int(lengths.max()), widest)), self.pad_id, np.int32)
        for row, one in zip(tokens, ids):
            row[: len(one)] = one
        return tokens, lengths


def _completion_ids(
    rows: list[Row], tokenizer: "PreTrainedTokenizerBase", column: str, eos_id: int
) -> list[list[int]]:
    if column not in rows[0]:
        names = ", ".join(rows[0])
        raise UserError(
            f"dataset: no column '{column}'{nearest(column, rows[0])} among {names}; "
            "set completion_column to the one that holds the completions"
        )
    texts, faults = [], []
    for number, row in enumerate(rows, start=1):
        try:
            texts.append(_completion(row.get(column)))
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        raise UserError(f"dataset: {len(faults)} of {len(rows)} rows cannot be used; {faults[0]}")
    # No special tokens of the tokenizer's own (a leading <s>): the completion stands in the middle of a row.
    return [[*ids, eos_id] for ids in encode(texts, tokenizer, chat=True)]


def _completion(value: Any) -> str:
    """The text of a completion: a string, or one assistant message. ValueError, saying what is wrong."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        if value[0].get("role") != "assistant":
            raise ValueError("the completion's message is not the assistant's")
        value = value[0].get("content")
    if not isinstance(value, str):
        raise ValueError("the completion is neither text nor one assistant message")
    if not value.strip():
        raise ValueError("the completion is empty")
    return value
