"""Prompts, tokenised once, and batches of them by their sample indices.

An index is epoch * rows + row: the row is drawn for the (epoch + 1)-th time. Random numbers are folded from it, so a
prompt gets others in the next epoch. `curriculum/sampler.py` decides which index comes next.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax.data.chat import Prompt, encode, is_chat, render
from grpo_jax.data.layouts import arrange
from grpo_jax.data.nested import nested_names, with_columns
from grpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]

# Arguments that every reward function gets; a column of the same name would clash.
_TAKEN = {"prompt", "prompts", "completion", "completions", "completion_ids"}
_TAKEN |= {"trainer_state", "log_extra", "log_metric"}
_SMALLEST_BUCKET = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptBatch:
    """P prompts, ready for the rollout and for reward functions."""

    tokens: np.ndarray
    """int32 [P, Tp], right-padded."""
    lengths: np.ndarray
    """int32 [P], tokens of each prompt, at least 1."""
    uids: np.ndarray
    """uint32 [P]: sample indices modulo 2^32, from which random numbers are folded."""
    prompts: list[Prompt]
    """P prompts as in the data set: text, or a list of messages."""
    texts: list[str]
    """P texts after the chat template, which `tokens` encodes."""
    columns: dict[str, list[Any]]
    """The data set's other columns, P values each; None where a row lacks one."""
    lacks: list[frozenset[str]]
    """P sets of the columns that no row of the prompt's domain has: functions that need one do not score it."""
    pad_id: int = 0
    """The padding token in `tokens`."""

    def take(self, indices: np.ndarray) -> "PromptBatch":
        """The prompts at `indices`, with the width of a batch of them alone."""
        width = bucket(int(self.lengths[indices].max(initial=1)), self.tokens.shape[1])
        pick = lambda column: [column[i] for i in indices]
        return PromptBatch(
            tokens=self.tokens[indices, :width],
            lengths=self.lengths[indices],
            uids=self.uids[indices],
            prompts=pick(self.prompts),
            texts=pick(self.texts),
            columns={name: pick(column) for name, column in self.columns.items()},
            lacks=pick(self.lacks),
            pad_id=self.pad_id,
        )

    @staticmethod
    def join(parts: "Sequence[PromptBatch]") -> "PromptBatch":
        """Concatenate batches of one data set, padded to the width of the widest."""
        width = max(part.tokens.shape[1] for part in parts)
        chain = lambda lists: [value for each in lists for value in each]
        return PromptBatch(
            tokens=np.concatenate([_widened(part, width) for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            uids=np.concatenate([part.uids for part in parts]),
            prompts=chain(part.prompts for part in parts),
            texts=chain(part.texts for part in parts),
            columns={name: chain(part.columns[name] for part in parts) for name in parts[0].columns},
            lacks=chain(part.lacks for part in parts),
            pad_id=parts[0].pad_id,
        )


def _widened(batch: PromptBatch, width: int) -> np.ndarray:
    missing = width - batch.tokens.shape[1]
    return np.pad(batch.tokens, ((0, 0), (0, missing)), constant_values=batch.pad_id)


@dataclass(frozen=True, eq=False)
class Domain:
    """One data set of a mixture. A data set without a mixture is a single domain without a name."""

    name: str
    rows: np.ndarray  # int64, numbers of its rows that are short enough
    columns: frozenset[str]


class Prompts:
    """A data set's prompts, tokenised once; `prompts.at(indices)` makes a batch.

    Args:
        rows: the rows of one data set, or name -> rows of the domains of a mixture: those are numbered consecutively,
            and get a column `domain`.
        max_prompt_length: tokens. Longer prompts are dropped, never cut; `dropped` counts them.

    `len()` is the number of prompts kept.

    Raises:
        UserError: there are no rows, a row has no usable prompt, or no prompt of a domain is short enough.
    """

    def __init__(
        self,
        rows: Sequence[Row] | Mapping[str, Sequence[Row]],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_prompt_length: int,
        system_prompt: str | None = None,
        prefill: str | None = None,
        pad_id: int = 0,
        prompt_column: str = "prompt",
        columns: Mapping[str, str] | None = None,
        layout: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.max_prompt_length, self.pad_id = max_prompt_length, pad_id
        parts = _arranged(rows, prompt_column, layout, columns)
        self._rows = [row for part in parts.values() for row in part]
        self._texts = render_all(self._rows, tokenizer, system_prompt, chat_template_kwargs, prefill)
        self._ids = encode_all(self._rows, self._texts, tokenizer, system_prompt)
        self._columns = _other_columns(self._rows, prompt_column)
        self.domains = self._domains(parts, prompt_column)
        self._kept = np.concatenate([domain.rows for domain in self.domains])
        self._lacks = [frozenset(self._columns) - domain.columns for domain in self.domains]
        self.dropped = len(self._rows) - len(self._kept)

    def _domains(self, parts: dict[str, list[Row]], prompt_column: str) -> tuple[Domain, ...]:
        domains: list[Domain] = []
        self._starts = np.cumsum([0, *map(len, parts.values())])
        for (name, part), first in zip(parts.items(), self._starts):
            ids = self._ids[first : first + len(part)]
            kept = first + _short_enough(ids, self.max_prompt_length, name)
            domains.append(Domain(name, kept, frozenset(_other_columns(part, prompt_column))))
        return tuple(domains)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def rows(self) -> int:
        """The number of rows of the data set, dropped ones included. Sample indices count in it."""
        return len(self._rows)

    @property
    def kept(self) -> list[int]:
        """Numbers of the rows that are short enough, in order."""
        return self._kept.tolist()

    @property
    def digest(self) -> str:
        """SHA-256 of the rows. A resumed run compares it to notice changed data."""
        return digest(self._rows)

    @property
    def columns(self) -> list[str]:
        """Names of the other columns, which every batch has."""
        return list(self._columns)

    @property
    def nested(self) -> list[str]:
        """Names of the fields inside columns, of the first row."""
        return nested_names(self._rows[0])

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """A column's values at these rows; None where a row lacks it."""
        return [self._rows[row].get(name) for row in rows]

    def of_each_kind(self) -> dict[int, Prompt]:
        """Row -> prompt of the first text prompt, and of the first conversation with each sequence of roles: a chat
        template accepts or refuses a conversation by its roles."""
        first: dict[tuple[str, ...], int] = {}
        for row in map(int, self._kept):
            prompt = self._rows[row]["prompt"]
            roles = () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
            first.setdefault(roles, row)
        return {row: self._rows[row]["prompt"] for row in first.values()}

    def domain_of(self, row: int) -> int:
        """The number of a row's domain."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def at(self, indices: Iterable[int]) -> PromptBatch:
        """The batch of these sample indices, in this order."""
        indices = list(indices)
        rows = [index % self.rows for index in indices]
        lengths = np.array([len(self._ids[row]) for row in rows], np.int32)
        width = bucket(int(lengths.max()), self.max_prompt_length)
        tokens = np.full((len(rows), width), self.pad_id, np.int32)
        for position, row in enumerate(rows):
            tokens[position, : lengths[position]] = self._ids[row]
        return PromptBatch(
            tokens=tokens,
            lengths=lengths,
            uids=np.array([index % 2**32 for index in indices], np.uint32),
            prompts=[self._rows[row]["prompt"] for row in rows],
            texts=[self._texts[row] for row in rows],
            columns={name: [self._rows[row].get(name) for row in rows] for name in self._columns},
            lacks=[self._lacks[self.domain_of(row)] for row in rows],
            pad_id=self.pad_id,
        )

    def steps_for(self, epochs: float, prompts_per_step: int) -> int:
        """Steps that draw every prompt `epochs` times, at least 1. The last may reach into the next epoch."""
        passes = Fraction(
            str(epochs)
        )  # as decimal: 2.2 passes over 25 prompts are 55 draws, not 55.00000000000001
        return max(math.ceil(passes * len(self) / prompts_per_step), 1)

    def batches_in_order(self, prompts_per_step: int) -> Iterator[tuple[PromptBatch, int]]:
        """Every kept prompt once, in the data's order, as (batch, number of its prompts that are real).

        All batches have `prompts_per_step` prompts: the last one is padded by repeating its last prompt, so that every
        host and compiled program sees the same shapes. Ignore the results of the repeated ones.
        """
        for start in range(0, len(self._kept), prompts_per_step):
            rows = [int(row) for row in self._kept[start : start + prompts_per_step]]
            padding = [rows[-1]] * (prompts_per_step - len(rows))
            yield self.at(rows + padding), len(rows)


def bucket(length: int, longest: int) -> int:
    """The smallest of 16, 32, 64, ... (at most `longest`) that is at least `length`: few shapes to compile for."""
    size = _SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, longest)


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of rows with all their columns."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).hexdigest()


def render_all(
    rows: list[Row],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str | None,
    chat_template_kwargs: dict[str, Any] | None = None,
    prefill: str | None = None,
) -> list[str]:
    """The text that the model continues, for each row. Raises UserError, naming the row."""
    texts = []
    for number, row in enumerate(rows, start=1):
        try:
            text = render(
                row["prompt"],
                tokenizer,
                system_prompt,
                prefill=prefill,
                chat_template_kwargs=chat_template_kwargs,
            )
        except UserError as error:
            raise UserError(f"dataset, row {number}: {error}") from None
        texts.append(text)
    return texts


def encode_all(
    rows: list[Row], texts: list[str], tokenizer: "PreTrainedTokenizerBase", system_prompt: str | None
) -> list[np.ndarray]:
    """Token ids of each row, int32 [length]. Text and conversations may be mixed: they are tokenised separately."""
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


def _arranged(
    rows: Sequence[Row] | Mapping[str, Sequence[Row]],
    prompt_column: str,
    layout: str | None,
    columns: Mapping[str, str] | None,
) -> dict[str, list[Row]]:
    """Domain -> rows with a usable `prompt` each. Raises UserError, naming domain and row."""
    if not isinstance(rows, Mapping):
        return {"": arrange(with_columns(rows, columns), prompt_column, layout)}
    parts = {}
    for name, part in rows.items():
        try:
            arranged = arrange(with_columns(part, columns), prompt_column, layout)
            parts[name] = [{**row, "domain": name} for row in arranged]
        except UserError as fault:
            raise UserError(f"dataset, '{name}': {fault}") from None
    return parts


def _short_enough(ids: list[np.ndarray], longest: int, name: str) -> np.ndarray:
    """Indices of the rows to keep. Raises UserError if there are none."""
    lengths = np.array([len(tokens) for tokens in ids])
    kept = np.flatnonzero(lengths <= longest)
    if not len(kept):
        raise UserError(
            f"max_prompt_length={longest}: all {len(ids)} prompts{f' of {name}' if name else ''} are longer, "
            f"from {lengths.min()} to {lengths.max()} tokens; set it to {lengths.min()} or more"
        )
    return kept


def _other_columns(rows: list[Row], prompt_column: str) -> list[str]:
    """Columns for reward functions, in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in _TAKEN and name != prompt_column]
