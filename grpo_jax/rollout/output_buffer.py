"""A rollout on the host, as far as it is read from the devices."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from grpo_jax.rollout.programs import Rollout
from grpo_jax.rollout.row_table import Table
from grpo_jax.rollout.state import Drawn
from grpo_jax.rollout.stopping import Stop
from grpo_jax.sharding import hosts

OnTokens = Callable[[int, int, list[int], bool], None]
"""(prompt, sample, its next tokens, whether they are its last)."""


class Collected:
    """P x G completions of up to `limits` [P,G] tokens, none of them drawn yet. `stop` ends them earlier, `on_tokens`
    is told what is read."""

    def __init__(
        self,
        limits: np.ndarray,
        width: int,
        pad_id: int,
        stop: Stop | None = None,
        on_tokens: OnTokens | None = None,
    ):
        self.limits: np.ndarray = limits
        self.tokens = np.full((*limits.shape, width), pad_id, np.int32)
        self.logprobs = np.zeros(self.tokens.shape, np.float32)
        self.lengths, self.finished = np.zeros(limits.shape, np.int32), np.zeros(limits.shape, bool)
        self.ended = limits == 0
        self._pad_id, self._stop, self._on_tokens = pad_id, stop, on_tokens
        self._told = np.zeros(len(limits), bool)

    def add(self, part: Drawn, table: Table, first: np.ndarray) -> None:
        """Write what was drawn for the rows of a table, the first of it at positions `first` [D,S,g]."""
        D, S, g = table.samples.shape
        shaped = lambda x: hosts.get(x).reshape(D, S, g, *x.shape[2:])
        tokens, logprobs, lengths, finished = map(
            shaped, (part.tokens, part.logprobs, part.lengths, part.finished)
        )
        fresh = table.alive(self.ended)
        at = first[..., None] + np.arange(tokens.shape[-1])
        drawn = fresh[..., None] & (at < lengths[..., None])
        d, s, r, n = np.nonzero(drawn)
        where = table.prompts[d, s], table.samples[d, s, r], at[d, s, r, n]
        self.tokens[where], self.logprobs[where] = tokens[drawn], logprobs[drawn]
        rows = np.broadcast_to(table.prompts[..., None], fresh.shape)[fresh], table.samples[fresh]
        self.lengths[rows], self.finished[rows] = lengths[fresh], finished[fresh]
        self.ended[rows] = finished[fresh] | (lengths[fresh] >= self.limits[rows])
        self._follow(*rows, first[fresh])

    def _follow(self, prompts: np.ndarray, samples: np.ndarray, first: np.ndarray) -> None:
        """Look into what rows have got from position `first` on, and tell of it. All arrays [n]."""
        if not (self._stop or self._on_tokens):
            return
        for p, g, start in zip(prompts.tolist(), samples.tolist(), first.tolist()):
            if self._stop:
                self._stop_row(self._stop, p, g, start)
            if self._on_tokens:
                ids = self.tokens[p, g, start : self.lengths[p, g]].tolist()
                self._on_tokens(p, g, ids, bool(self.ended[p, g]))

    def _stop_row(self, stop: Stop, p: int, g: int, seen: int) -> None:
        """What a row has got after its stop string is as if it was never drawn."""
        end = stop.end(self.tokens[p, g, : self.lengths[p, g]].tolist(), seen)
        if end is not None:
            self.tokens[p, g, end:], self.logprobs[p, g, end:] = self._pad_id, 0.0
            self.lengths[p, g], self.finished[p, g], self.ended[p, g] = end, True, True

    def complete(self) -> Iterator[int]:
        """Prompts all of whose completions have ended, each once."""
        for p in np.flatnonzero(self.ended.all(1) & ~self._told):
            self._told[p] = True
            yield int(p)

    def ids(self, prompt: int) -> list[list[int]]:
        """The tokens of a prompt's completions."""
        return [row[:n].tolist() for row, n in zip(self.tokens[prompt], self.lengths[prompt])]

    @property
    def rollout(self) -> Rollout:
        """As it is now."""
        arrays: Any = self.tokens, self.logprobs, self.lengths, self.finished
        return Rollout.of_policy(*arrays)
