"""Prompt batches as a function of the step.

The draws form one infinite sequence: epoch 0 in its order, epoch 1 in its order, and so on; step s takes
draws s*P .. (s+1)*P - 1. An epoch's order is a function of (seed, epoch), so nothing needs saving or
rewinding: a run that starts again at step s draws what it would have drawn.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax.data.chat import Prompt, encode, is_chat, render
from grpo_jax.data.layouts import arrange
from grpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]

# What a reward function is called with anyway; a column of the same name would clash.
_TAKEN = {"prompt", "prompts", "completion", "completions", "completion_ids"}
_TAKEN |= {"trainer_state", "log_extra", "log_metric"}
_SMALLEST_BUCKET = 16


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """P prompts, ready for the rollout and for reward functions."""

    tokens: np.ndarray
    """int32 [P, Tp], right-padded."""
    lengths: np.ndarray
    """int32 [P], tokens of each prompt, at least 1."""
    uids: np.ndarray
    """uint32 [P]: epoch * rows + row, the identity that randomness is folded from (modulo 2^32)."""
    prompts: list[Prompt]
    """P prompts as the data set gives them: text, or a list of messages."""
    texts: list[str]
    """P texts after the chat template, what `tokens` encodes."""
    columns: dict[str, list[Any]]
    """The data set's other columns, P values each; None where a row lacks one."""
    pad_id: int = 0
    """What stands in `tokens` behind a prompt."""

    def take(self, which: np.ndarray) -> "PromptBatch":
        """The prompts at the indices `which`, as wide as a batch of them alone would be."""
        width = bucket(int(self.lengths[which].max(initial=1)), self.tokens.shape[1])
        pick = lambda column: [column[i] for i in which]
        return PromptBatch(
            tokens=self.tokens[which, :width],
            lengths=self.lengths[which],
            uids=self.uids[which],
            prompts=pick(self.prompts),
            texts=pick(self.texts),
            columns={name: pick(column) for name, column in self.columns.items()},
            pad_id=self.pad_id,
        )

    @staticmethod
    def join(parts: "Sequence[PromptBatch]") -> "PromptBatch":
        """Batches of one data set after one another, as wide as the widest."""
        width = max(part.tokens.shape[1] for part in parts)
        chain = lambda lists: [value for each in lists for value in each]
        return PromptBatch(
            tokens=np.concatenate([_widened(part, width) for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            uids=np.concatenate([part.uids for part in parts]),
            prompts=chain(part.prompts for part in parts),
            texts=chain(part.texts for part in parts),
            columns={name: chain(part.columns[name] for part in parts) for name in parts[0].columns},
            pad_id=parts[0].pad_id,
        )


def _widened(batch: PromptBatch, width: int) -> np.ndarray:
    missing = width - batch.tokens.shape[1]
    return np.pad(batch.tokens, ((0, 0), (0, missing)), constant_values=batch.pad_id)


class Prompts:
    """A data set's prompts, tokenised once; `prompts(step)` is the batch of a step.

    Prompts of more than `max_prompt_length` tokens are left out, never cut: `dropped` counts them. `len()`
    is the number kept. UserError: no rows, a row without a usable prompt, or none short enough.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        prompts_per_step: int,
        max_prompt_length: int,
        seed: int = 0,
        shuffle: bool = True,
        system_prompt: str | None = None,
        pad_id: int = 0,
        prompt_column: str = "prompt",
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.prompts_per_step = prompts_per_step
        self.max_prompt_length = max_prompt_length
        self.seed, self.shuffle, self.pad_id = seed, shuffle, pad_id
        self._rows = arrange(rows, prompt_column)
        self._texts = render_all(self._rows, tokenizer, system_prompt, chat_template_kwargs)
        self._ids = encode_all(self._rows, self._texts, tokenizer, system_prompt)
        self._kept = _short_enough(self._ids, max_prompt_length)
        self._columns = _other_columns(self._rows, prompt_column)
        self.dropped = len(self._rows) - len(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def columns(self) -> list[str]:
        """Names of the data set's other columns, which every batch has."""
        return list(self._columns)

    def __call__(self, step: int) -> PromptBatch:
        """The batch of a step: a function of (data, seed, step) alone."""
        return self.draws(step * self.prompts_per_step, self.prompts_per_step)

    def draws(self, first: int, count: int) -> PromptBatch:
        """Draws first .. first + count - 1 of the sequence, which never ends: a small data set comes round again,
        with other uids."""
        return self.at(range(first, first + count))

    def at(self, places: Iterable[int]) -> PromptBatch:
        """The draws at these places of the sequence."""
        return self._batch([self._draw(place) for place in places])

    def steps_for(self, epochs: float) -> int:
        """Steps that draw every prompt `epochs` times; the last may reach into the next epoch. At least 1."""
        passes = Fraction(str(epochs))  # 2.2 passes over 25 prompts are 55 draws, and not 55.00000000000001
        return max(math.ceil(passes * len(self) / self.prompts_per_step), 1)

    def batches_in_order(self, prompts_per_step: int) -> Iterator[tuple[PromptBatch, int]]:
        """Every kept prompt once, in the data's order, as (batch, how many of its prompts are real).

        All batches have `prompts_per_step` prompts: the last is filled up by repeating its last prompt, so
        that every host and every compiled program sees the same shapes to the end. Ignore results beyond the
        real ones.
        """
        for start in range(0, len(self._kept), prompts_per_step):
            rows = [int(row) for row in self._kept[start : start + prompts_per_step]]
            padding = [rows[-1]] * (prompts_per_step - len(rows))
            yield self._batch([(0, row) for row in rows + padding]), len(rows)

    def _draw(self, index: int) -> tuple[int, int]:
        """(epoch, row) of a draw of the infinite sequence."""
        epoch, position = divmod(index, len(self._kept))
        if self.shuffle:
            position = int(epoch_order(self.seed, epoch, len(self._kept))[position])
        return epoch, int(self._kept[position])

    def _batch(self, draws: list[tuple[int, int]]) -> PromptBatch:
        rows = [row for _, row in draws]
        lengths = np.array([len(self._ids[row]) for row in rows], np.int32)
        tokens = np.full(
            (len(rows), bucket(int(lengths.max()), self.max_prompt_length)), self.pad_id, np.int32
        )
        for at, row in enumerate(rows):
            tokens[at, : lengths[at]] = self._ids[row]
        return PromptBatch(
            tokens=tokens,
            lengths=lengths,
            uids=np.array([(epoch * len(self._rows) + row) % 2**32 for epoch, row in draws], np.uint32),
            prompts=[self._rows[row]["prompt"] for row in rows],
            texts=[self._texts[row] for row in rows],
            columns={name: [self._rows[row].get(name) for row in rows] for name in self._columns},
            pad_id=self.pad_id,
        )


def bucket(length: int, longest: int) -> int:
    """The smallest of 16, 32, 64, ... (at most `longest`) that holds `length`: few shapes to compile for."""
    size = _SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, longest)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1 that depends on (seed, epoch) only.

    Sorts raw Philox words: NumPy promises those bits for every version, and does not promise `permutation`'s.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(n)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False  # shared by the cache
    return order


def render_all(
    rows: list[Row],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str | None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[str]:
    """The text that the model continues, for each row. UserError, naming the row."""
    texts = []
    for number, row in enumerate(rows, start=1):
        try:
            text = render(row["prompt"], tokenizer, system_prompt, chat_template_kwargs=chat_template_kwargs)
        except UserError as error:
            raise UserError(f"dataset, row {number}: {error}") from None
        texts.append(text)
    return texts


def encode_all(
    rows: list[Row], texts: list[str], tokenizer: "PreTrainedTokenizerBase", system_prompt: str | None
) -> list[np.ndarray]:
    """int32 [length] of each row. Text and conversations may be mixed: each kind has a pass of its own."""
    ids: list[np.ndarray] = [np.empty(0, np.int32)] * len(rows)
    for chat in (False, True):
        some = [i for i, row in enumerate(rows) if is_chat(row["prompt"], system_prompt) is chat]
        for i, tokens in zip(some, encode([texts[i] for i in some], tokenizer, chat=chat)):
            ids[i] = np.array(tokens, np.int32)
    empty = [number for number, tokens in enumerate(ids, start=1) if not len(tokens)]
    if empty:
        raise UserError(
            f"dataset: {len(empty)} prompts have no tokens in this tokenizer; the first is row {empty[0]}"
        )
    return ids


def _short_enough(ids: list[np.ndarray], longest: int) -> np.ndarray:
    """Indices of the rows to keep."""
    lengths = np.array([len(tokens) for tokens in ids])
    kept = np.flatnonzero(lengths <= longest)
    if not len(kept):
        raise UserError(
            f"max_prompt_length={longest}: all {len(ids)} prompts are longer, "
            f"from {lengths.min()} to {lengths.max()} tokens; set it to {lengths.min()} or more"
        )
    return kept


def _other_columns(rows: list[Row], prompt_column: str) -> list[str]:
    """Columns for reward functions, in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in _TAKEN and name != prompt_column]
