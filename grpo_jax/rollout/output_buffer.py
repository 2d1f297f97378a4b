"""The host's copy of a rollout, filled as tokens are read from the devices."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from grpo_jax.rollout.protocol import OnTokens, Rollout
from grpo_jax.rollout.row_table import RowTable
from grpo_jax.rollout.state import SampledTokens
from grpo_jax.rollout.stopping import Stop
from grpo_jax.sharding import hosts


class OutputBuffer:
    """P x G completions of up to `limits` [P,G] tokens, all empty at first. `stop` ends them earlier, and `on_tokens`
    is called with the tokens as they are read."""

    def __init__(
        self,
        limits: np.ndarray,
        max_completion_length: int,
        pad_id: int,
        stop: Stop | None = None,
        on_tokens: OnTokens | None = None,
    ):
        self.limits: np.ndarray = limits
        self.tokens = np.full((*limits.shape, max_completion_length), pad_id, np.int32)
        self.logprobs = np.zeros(self.tokens.shape, np.float32)
        self.lengths, self.finished = np.zeros(limits.shape, np.int32), np.zeros(limits.shape, bool)
        self.ended = limits == 0
        self._pad_id, self._stop, self._on_tokens = pad_id, stop, on_tokens
        self._reported = np.zeros(len(limits), bool)

    def add(self, sampled: SampledTokens, table: RowTable, first: np.ndarray) -> None:
        """Write the tokens sampled for the rows of a table; each row's first is at position `first` [D,S,g]."""
        D, S, g = table.samples.shape
        fetch = lambda x: hosts.get(x).reshape(D, S, g, *x.shape[2:])
        tokens, logprobs, lengths, finished = map(
            fetch, (sampled.tokens, sampled.logprobs, sampled.lengths, sampled.finished)
        )
        alive = table.alive(self.ended)
        positions = first[..., None] + np.arange(tokens.shape[-1])
        new = alive[..., None] & (positions < lengths[..., None])
        d, s, r, n = np.nonzero(new)
        index = table.prompts[d, s], table.samples[d, s, r], positions[d, s, r, n]
        self.tokens[index], self.logprobs[index] = tokens[new], logprobs[new]
        rows = np.broadcast_to(table.prompts[..., None], alive.shape)[alive], table.samples[alive]
        self.lengths[rows], self.finished[rows] = lengths[alive], finished[alive]
        self.ended[rows] = finished[alive] | (lengths[alive] >= self.limits[rows])
        self._inspect(*rows, first[alive])

    def _inspect(self, prompts: np.ndarray, samples: np.ndarray, first: np.ndarray) -> None:
        """Search the tokens from position `first` on for stop strings, then report them. All arrays [n]."""
        if not (self._stop or self._on_tokens):
            return
        for p, g, start in zip(prompts.tolist(), samples.tolist(), first.tolist()):
            if self._stop:
                self._stop_row(self._stop, p, g, start)
            if self._on_tokens:
                ids = self.tokens[p, g, start : self.lengths[p, g]].tolist()
                self._on_tokens(p, g, ids, bool(self.ended[p, g]))

    def _stop_row(self, stop: Stop, p: int, g: int, seen: int) -> None:
        """Erase what was sampled after a row's stop string."""
        end = stop.end(self.tokens[p, g, : self.lengths[p, g]].tolist(), seen)
        if end is not None:
            self.tokens[p, g, end:], self.logprobs[p, g, end:] = self._pad_id, 0.0
            self.lengths[p, g], self.finished[p, g], self.ended[p, g] = end, True, True

    def completed_prompts(self) -> Iterator[int]:
        """Prompts whose completions have all ended, each reported once."""
        for p in np.flatnonzero(self.ended.all(1) & ~self._reported):
            self._reported[p] = True
            yield int(p)

    def ids(self, prompt: int) -> list[list[int]]:
        """The token ids of a prompt's completions."""
        return [row[:n].tolist() for row, n in zip(self.tokens[prompt], self.lengths[prompt])]

    @property
    def rollout(self) -> Rollout:
        """The buffer's arrays as they are now."""
        arrays: Any = self.tokens, self.logprobs, self.lengths, self.finished
        return Rollout.of_policy(*arrays)
