"""From sampled tokens to rewards: decode, let each host score its own prompts, put the shares together."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool, Scores, combine
from grpo_jax.rollout.generate import Rollout
from grpo_jax.sharding import hosts


@dataclass(frozen=True)
class Scored:
    """A rollout's rewards."""

    rewards: np.ndarray  # [P,G] float32, the weighted sum; NaN where no function said anything
    values: np.ndarray  # [P,G,n] float32, one for each function; NaN for None
    completions: list[str]  # P * G texts without special tokens
    failures: dict[str, int]  # rows lost to errors, timeouts and NaNs, by "rewards/{name}/{kind}"


class Scorer:
    """Scores rollouts with the functions of a pool, `weights` [n]."""

    def __init__(self, pool: RewardPool, weights: list[float] | None, tokenizer: Any):
        self.pool, self.tokenizer = pool, tokenizer
        self.weights = list(weights) if weights is not None else [1.0] * len(pool.names)
        self._told: set[tuple[str, str]] = set()  # (function, kind of fault)

    def check(self, prompts: Prompts) -> None:
        """UserError when a reward needs a column that these data do not have."""
        self.pool.check_columns({"prompts", "completions", "completion_ids", *prompts.columns})

    def __call__(self, batch: PromptBatch, rollout: Rollout) -> Scored:
        """Score a rollout that was fetched to NumPy arrays. Every process must call it."""
        P, G = rollout.lengths.shape
        ids = [row[:n].tolist() for row, n in zip(rollout.tokens.reshape(P * G, -1), rollout.lengths.ravel())]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = self._score_own(_arguments(batch, texts, ids, hosts.own_share(P), G))
        # float32 here, and not only on the way between hosts: one process or many, the same bits
        values = scores.values.astype(np.float32).reshape(-1, G, len(self.weights))
        values = hosts.join_shares(values, P)
        rewards = combine(values.reshape(P * G, -1), self.weights).reshape(P, G).astype(np.float32)
        return Scored(rewards, values, texts, self._failures(scores, P * G))

    def _score_own(self, arguments: tuple) -> Scores:
        """This host's share. A reward that stops the run stops it on every host, before any waits for another."""
        fault: UserError | None = None
        try:
            scores = self.pool.score(*arguments)
        except UserError as raised:
            fault = raised
        if hosts.agree(fault is not None):
            raise fault or UserError("rewards: a reward failed on another host; its message stands there")
        return scores

    def _failures(self, scores: Scores, rows: int) -> dict[str, int]:
        """Rows lost, over all hosts; the first fault of each kind is told once, and once a function that fails on
        every row of a batch: a service that is down for a step costs that step, not the run."""
        kinds = {"errors": scores.errors, "timeouts": scores.timeouts, "nans": scores.nans}
        counts = hosts.total([[kind[name] for name in self.pool.names] for kind in kinds.values()])
        self._tell()
        for name, lost in zip(self.pool.names, counts.sum(0)):
            if lost == rows and hosts.is_writer():
                self._tell_once(
                    (name, "all"),
                    f"'{name}' failed on all {rows} completions of a step; nothing is learned from it while it "
                    "does (on_reward_error = stop ends the run instead)",
                )
        return {
            f"rewards/{name}/{kind}": int(n)
            for kind, row in zip(kinds, counts)
            for name, n in zip(self.pool.names, row)
            if n
        }

    def _tell(self) -> None:
        for name, messages in self.pool.messages.items():
            for kind, why in messages.items():
                self._tell_once((name, kind), f"'{name}' had {kind}; the first: {why}")

    def _tell_once(self, what: tuple[str, str], sentence: str) -> None:
        if what not in self._told:
            self._told.add(what)
            print(f"rewards: {sentence}", file=sys.stderr, flush=True)


def _arguments(batch: PromptBatch, texts: list[str], ids: list[list[int]], own: slice, G: int) -> tuple:
    """(prompts, completions, columns, completion_ids) of this host's prompts, one entry a row."""
    rows = slice(own.start * G, own.stop * G)
    per_row = lambda column: [value for value in column[own] for _ in range(G)]
    prompts = per_row(batch.prompts)
    replies = [_reply(prompt, text) for prompt, text in zip(prompts, texts[rows])]
    return prompts, replies, {name: per_row(column) for name, column in batch.columns.items()}, ids[rows]


def _reply(prompt: Any, text: str) -> Any:
    """A completion in the form of its prompt: text for text, a message for messages (TRL's convention)."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
