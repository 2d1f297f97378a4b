"""Supervised examples: pairs of prompt and completion, in batches that are a function of the step, packed or not.

The prompt is tokenised as for the sampler, and the completion separately, followed by the end-of-sequence token:
training sees exactly the tokens of a rollout of the same text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grpo_jax.data.chat import encode
from grpo_jax.data.curriculum.epoch_order import epoch_order
from grpo_jax.data.layouts import arrange
from grpo_jax.data.prompts import bucket, encode_all, render_all
from grpo_jax.data.sft.packing import Packing, Strategy
from grpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Pair = tuple[np.ndarray, list[int]]  # token ids of a prompt, and of its completion

_MIXING = 1 << 32  # added to the seed (which is smaller), for a separate stream of random numbers


@dataclass(frozen=True, eq=False)
class ExampleBatch:
    """B rows; prompts and completions are each padded on the right."""

    prompts: np.ndarray
    """int32 [B, Tp]."""
    prompt_lengths: np.ndarray
    """int32 [B]."""
    completions: np.ndarray
    """int32 [B, Tc]."""
    completion_lengths: np.ndarray
    """int32 [B], end-of-sequence token included."""

    @property
    def mask(self) -> np.ndarray:
        """float32 [B, Tc], 1 for the tokens that are learned."""
        real = np.arange(self.completions.shape[1]) < self.completion_lengths[:, None]
        return real.astype(np.float32)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return int(self.prompt_lengths.sum() + self.completion_lengths.sum())

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B sequences of T tokens: each concatenates several rows [prompt | completion], and is padded on the right."""

    sequences: np.ndarray
    """int32 [B, T]."""
    segments: np.ndarray
    """int32 [B, T]: 1, 2, ... for the rows of a sequence, 0 for padding."""
    before: np.ndarray
    """int32 [B, Tc]: position in its sequence of the token before each completion token; 0 for padding."""
    completions: np.ndarray
    """int32 [B, Tc]: the completion tokens of all rows of a sequence."""
    mask: np.ndarray
    """float32 [B, Tc], 1 for the tokens that are learned."""

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return int((self.segments > 0).sum())

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return int(self.segments.max(axis=1).sum())

    @property
    def fill_rate(self) -> float:
        """The share of tokens that are not padding."""
        return self.tokens / self.segments.size


class Examples:
    """A data set of prompts and completions, tokenised once; `examples(step)` is the batch of a step.

    Rows are drawn epoch after epoch, each in an order that (seed, epoch) determines. With `packing`, a draw is a
    sequence of up to `max_length` tokens with several rows. Rows longer than `max_length` are dropped (`dropped` counts
    them, `len()` the others); with `long_rows` = "cut" they are cut there (`cut` counts them), and dropped only if no
    token of the completion is left.

    Raises:
        UserError: there are no rows, a column is missing, a row has no usable prompt or completion, or none is short
            enough.
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
        chat_template_kwargs: dict[str, Any] | None = None,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        layout: str | None = None,
        packing: Strategy | None = None,
        long_rows: Literal["drop", "cut"] = "drop",
    ):
        self.rows_per_step, self.max_length, self.pad_id = rows_per_step, max_length, pad_id
        self.seed, self.shuffle = seed, shuffle
        arranged = arrange(rows, prompt_column, layout, completion_column=completion_column)
        self.texts = render_all(arranged, tokenizer, system_prompt, chat_template_kwargs)
        prompts = encode_all(arranged, self.texts, tokenizer, system_prompt)
        completions = _completion_ids(arranged, tokenizer, completion_column, eos_id)
        self._pairs = self._short_enough(list(zip(prompts, completions)), long_rows)
        self._widest = tuple(max(len(pair[part]) for pair in self._pairs) for part in (0, 1))
        self._packing = self._packed_with(packing) if packing else None

    def __len__(self) -> int:
        return len(self._pairs)

    def __call__(self, step: int) -> ExampleBatch | PackedBatch:
        """The batch of a step, which depends only on (data, seed, step)."""
        draws = range(step * self.rows_per_step, (step + 1) * self.rows_per_step)
        if self._packing is None:
            return self._batch([self._draw(i) for i in draws])
        return self._packed_batch([self._packing[i] for i in draws])

    @property
    def fill_rate(self) -> float | None:
        """The share of tokens in the first epoch's sequences that are not padding; None without packing."""
        if self._packing is None:
            return None
        tokens = sum(len(prompt) + len(completion) for prompt, completion in self._pairs)
        return tokens / (self._packing.count(Fraction(1)) * self.max_length)

    def steps_for(self, epochs: float) -> int:
        """Steps that draw every row `epochs` times, at least 1. The last may reach into the next epoch."""
        passes = Fraction(str(epochs))  # the decimal number, not the nearest binary one
        draws = passes * len(self) if self._packing is None else self._packing.count(passes)
        return max(math.ceil(draws / self.rows_per_step), 1)

    def batches_in_order(self, at_a_time: int) -> Iterator[ExampleBatch]:
        """Every row once, in the data's order. The last batch is padded with rows whose completion length is 0."""
        for first in range(0, len(self), at_a_time):
            real = range(first, min(first + at_a_time, len(self)))
            batch = self._batch([*real, *[real[-1]] * (at_a_time - len(real))])
            lengths = np.where(np.arange(at_a_time) < len(real), batch.completion_lengths, 0)
            yield replace(batch, completion_lengths=lengths.astype(np.int32))

    def _short_enough(self, pairs: list[Pair], long_rows: str) -> list[Pair]:
        """The rows to learn from, of at most `max_length` tokens each."""
        room = self.max_length
        long = sum(len(prompt) + len(completion) > room for prompt, completion in pairs)
        if long_rows == "cut":
            # A prompt that fills the row leaves no token to learn.
            kept = [(prompt, ids[: room - len(prompt)]) for prompt, ids in pairs if len(prompt) < room]
        else:
            kept = [(prompt, ids) for prompt, ids in pairs if len(prompt) + len(ids) <= room]
        self.dropped = len(pairs) - len(kept)
        self.cut = long - self.dropped
        if not kept:
            shortest = min(len(prompt) + len(completion) for prompt, completion in pairs)
            raise UserError(
                f"max_length = {room}: all {len(pairs)} rows are longer, from {shortest} tokens on; "
                f"set it to {shortest} or more"
            )
        return kept

    def _packed_with(self, strategy: Strategy) -> Packing:
        n = len(self._pairs)
        order = lambda epoch: epoch_order(self.seed, epoch, n) if self.shuffle else np.arange(n)
        mix = lambda epoch, sequences: epoch_order(self.seed + _MIXING, epoch, sequences)
        lengths = [len(prompt) + len(completion) for prompt, completion in self._pairs]
        return Packing(lengths, self.max_length, strategy, order, mix if self.shuffle else None)

    def _draw(self, index: int) -> int:
        epoch, position = divmod(index, len(self._pairs))
        return int(epoch_order(self.seed, epoch, len(self._pairs))[position]) if self.shuffle else position

    def _batch(self, rows: Sequence[int]) -> ExampleBatch:
        pairs = [self._pairs[row] for row in rows]
        (prompts, prompt_lengths), (completions, lengths) = (
            self._padded([pair[part] for pair in pairs], self._widest[part]) for part in (0, 1)
        )
        return ExampleBatch(prompts, prompt_lengths, completions, lengths)

    def _packed_batch(self, packed: Sequence[Sequence[int]]) -> PackedBatch:
        width = self.max_length + self.max_length % 2  # cuDNN's attention requires an even width
        sequences = np.full((len(packed), width), self.pad_id, np.int32)
        segments = np.zeros_like(sequences)
        before: list[list[int]] = []  # of each sequence
        for b, rows in enumerate(packed):
            end = 0
            before.append([])
            for number, row in enumerate(rows, start=1):
                prompt, completion = self._pairs[row]
                begin, middle, end = end, end + len(prompt), end + len(prompt) + len(completion)
                sequences[b, begin:middle], sequences[b, middle:end] = prompt, completion
                segments[b, begin:end] = number
                before[b] += range(middle - 1, end - 1)
        positions, counts = self._padded(before, width, 0)
        completions = np.take_along_axis(sequences, positions + 1, axis=1)
        mask = (np.arange(positions.shape[1]) < counts[:, None]).astype(np.float32)
        return PackedBatch(sequences, segments, positions, completions, mask)

    def _padded(
        self, ids: Sequence[Sequence[int] | np.ndarray], widest: int, pad: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T], padded to a bucket's width, and lengths [B]."""
        lengths = np.array([len(one) for one in ids], np.int32)
        shape = len(ids), bucket(int(lengths.max()), widest)
        tokens = np.full(shape, self.pad_id if pad is None else pad, np.int32)
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
    # Without the tokenizer's special tokens (a leading <s>), because the completion is in the middle of a row.
    return [[*ids, eos_id] for ids in encode(texts, tokenizer, chat=True)]


def _completion(value: Any) -> str:
    """The text of a completion: a string, or one assistant message. Raises ValueError, saying what is wrong."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        if value[0].get("role") != "assistant":
            raise ValueError("the completion's message is not the assistant's")
        value = value[0].get("content")
    if not isinstance(value, str):
        raise ValueError("the completion is neither text nor one assistant message")
    if not value.strip():
        raise ValueError("the completion is empty")
    return value
