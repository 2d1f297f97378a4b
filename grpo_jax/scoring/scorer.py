"""From sampled tokens to rewards: decode, let each host score its own prompts, put the shares together."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool, Scores, Stream, combine
from grpo_jax.rewards.functions.overlong import soft_overlong
from grpo_jax.rollout.programs import Rollout
from grpo_jax.scoring.reward_models import RewardModel
from grpo_jax.scoring.scored import Columns, Scored, means, stacked
from grpo_jax.sharding import hosts


class Scorer:
    """Scores rollouts with the functions of a pool, `weights` [n].

    `overlong` = (limit, buffer) adds DAPO's punishment of long completions (`soft_overlong`) with weight 1. `models`
    are the reward models among the functions, by their place there: they score a rollout when all of it is there.
    """

    def __init__(
        self,
        pool: RewardPool,
        weights: list[float] | None,
        tokenizer: Any,
        overlong: tuple[int, int] | None = None,
        models: Mapping[int, RewardModel] | None = None,
    ):
        self.pool, self.tokenizer, self.overlong, self.models = pool, tokenizer, overlong, models or {}
        assert self.models.keys() == pool.models.keys(), "each reward model of the pool is opened"
        self.weights = list(weights) if weights is not None else [1.0] * len(pool.names)
        self._told: set[tuple[str, str]] = set()  # (function, kind of fault)

    @property
    def model_bytes(self) -> int:
        """Of the reward models' weights, on each device."""
        return sum(model.bytes for model in self.models.values())

    @property
    def fingerprint(self) -> dict[str, str]:
        """What tells its reward models from others."""
        return {f"reward model {self.pool.names[n]}": model.digest for n, model in self.models.items()}

    def check(self, prompts: Prompts) -> None:
        """UserError when a reward needs a column that these data do not have; or when no reward has what it needs in
        one of the domains of a mixture; or when a reward model cannot read their prompts."""
        self.pool.check_columns({"prompts", "completions", "completion_ids", *prompts.columns})
        for model in self.models.values():
            model.check(prompts)
        for domain in prompts.domains:
            lacks = frozenset(prompts.columns) - domain.columns
            if len(self.pool.idle(lacks)) == len(self.pool.names):
                has = ", ".join(sorted(domain.columns))
                raise UserError(f"rewards: none has the columns it needs in '{domain.name}'; it has {has}")

    def __call__(self, batch: PromptBatch, rollout: Rollout, trainer_state: Any = None) -> Scored:
        """Score a rollout that was fetched to NumPy arrays. Every process must call it.

        `trainer_state` goes to the functions that ask for it.
        """
        with self.stream(batch, rollout.lengths.shape[1], trainer_state) as scoring:
            return scoring.finish(rollout)

    def stream(
        self, batch: PromptBatch, samples: int, trainer_state: Any = None, real: int | None = None
    ) -> "Scoring":
        """The same for a rollout of `samples` completions a prompt that is not there yet: see `Scoring`. Prompts after
        the first `real` (None: all) only fill the batch up: no function is asked about them."""
        return Scoring(self, batch, samples, trainer_state, len(batch.prompts) if real is None else real)

    def scored(self, batch: PromptBatch, rollout: Rollout, texts: list[str], scores: Scores) -> Scored:
        """The whole rollout's rewards from this host's share of the scores. Every process must call it."""
        P, G = rollout.lengths.shape
        values, base = self._joined(scores.values, P, G)
        shaping = self._shaping(rollout)
        metrics = self._metrics(scores, len(scores.values))
        if self.overlong:
            metrics["rewards/overlong/mean"] = float(shaping.mean())
        failures = self._failures(scores, P * G)
        extras, judges = _joined_columns(scores.extras, P, G), self.judges(batch)
        return Scored(base + shaping, base, values, texts, failures, extras, judges, metrics)

    def restore(
        self, batch: PromptBatch, rollout: Rollout, base: np.ndarray, values: np.ndarray, extras: Columns
    ) -> Scored:
        """What was said about a rollout in an earlier call, from those parts of it that only that call knew."""
        rewards, texts = base + self._shaping(rollout), self.texts(_ids(rollout))
        return Scored(rewards, base, values, texts, {}, extras, self.judges(batch), {})

    def judges(self, batch: PromptBatch) -> np.ndarray:
        """[P] int, of each prompt the first function that is asked about it; a reward model only where there is no
        function, since its scores have no zero and no one."""
        order = sorted(range(len(self.pool.names)), key=lambda n: n in self.models)
        asked = lambda lacks: (n for n in order if n not in self.pool.idle(lacks))
        return np.array([next(asked(lacks), 0) for lacks in batch.lacks], np.int64)

    def texts(self, ids: list[list[int]]) -> list[str]:
        """Completions without special tokens."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _shaping(self, rollout: Rollout) -> np.ndarray:
        """[P,G] float32, to add to the weighted sum."""
        limit, buffer = self.overlong or (0, 0)
        return soft_overlong(rollout.lengths, limit, buffer).astype(np.float32)

    def _joined(self, own: np.ndarray, P: int, G: int) -> tuple[np.ndarray, np.ndarray]:
        """(values [P,G,n], their weighted sum [P,G]), the same bits on every host: they decide alike by them."""
        # float32 here, and not only on the way between hosts: one process or many, the same bits
        own = own.astype(np.float32)
        both = np.column_stack([own, combine(own, self.weights).astype(np.float32)])
        both = hosts.join_shares(both.reshape(-1, G, len(self.weights) + 1), P)
        return both[..., :-1], both[..., -1]

    def _metrics(self, scores: Scores, rows: int) -> dict[str, float]:
        """What functions logged, each host's mean weighted by its rows."""
        parts = _from_every_host([{"metrics": scores.metrics, "rows": rows}], jax.process_count())
        return means([part["metrics"] for part in parts], [part["rows"] for part in parts])

    def note_faults(self, column: int, scores: Scores, why: list[str | None]) -> None:
        """Rows, with a reason, that a reward model could not score; counted as those are on which a function fails.

        UserError where such a row stops the run.
        """
        name, reasons = self.pool.names[column], [reason for reason in why if reason]
        scores.errors[name] += len(reasons)
        if reasons:
            self.pool.messages[name].setdefault("errors", reasons[0])
        if hosts.any_process(bool(reasons) and self.pool.on_error == "stop"):
            raise UserError(
                f"rewards: '{name}' failed: {(reasons or ['on another host'])[0]}\n"
                "mend that (shorter rows: max_completion_length), or set on_reward_error to count"
            )

    def _failures(self, scores: Scores, rows: int) -> dict[str, int]:
        """Rows lost, over all hosts; the first fault of each kind is told once, and once a function that fails on
        every row of a batch: a service that is down for a step costs that step, not the run."""
        kinds = {"errors": scores.errors, "timeouts": scores.timeouts, "nans": scores.nans}
        counts = hosts.sum_over_processes(
            [[kind[name] for name in self.pool.names] for kind in kinds.values()]
        )
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


class Scoring:
    """A rollout that is scored while it is sampled; made by `Scorer.stream`. Leaving its `with` early gives it up.

    Every process must tell of every prompt in the same order and finish together: each scores its own share.
    """

    def __init__(self, scorer: Scorer, batch: PromptBatch, samples: int, trainer_state: Any, real: int):
        self._scorer, self._batch, self._samples, self._real = scorer, batch, samples, real
        self._own = hosts.own_share(len(batch.prompts))
        self._texts: dict[int, list[str]] = {}  # G of each own prompt that was added
        self._fault: UserError | None = None
        self._rows: Stream = scorer.pool.stream((self._own.stop - self._own.start) * samples, trainer_state)

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.cancel()

    def add(self, p: int, completion_ids: list[list[int]]) -> None:
        """Prompt `p` of the batch is complete; token ids, without padding, of its G completions. Takes no time.

        Raises:
            UserError: a reward has failed that stops the run. On many hosts only `finish` raises it: the others
                are still sampling, and would wait for this one.
            ValueError: the prompt was added before.
        """
        if not self._own.start <= p < self._own.stop:
            return
        assert len(completion_ids) == self._samples, f"{len(completion_ids)} completions, not {self._samples}"
        self._texts[p] = self._scorer.texts(completion_ids)
        try:
            first = (p - self._own.start) * self._samples
            self._rows.add(first, *self._arguments(p), completion_ids, idle=self._idle(p))
        except UserError as fault:
            if jax.process_count() == 1:
                raise
            self._fault = fault

    def _idle(self, p: int) -> frozenset[int]:
        """The functions that the pool does not ask about a prompt."""
        pool = self._scorer.pool
        if p >= self._real:
            return frozenset(range(len(pool.names)))
        return pool.idle(self._batch.lacks[p]) | pool.models.keys()

    def finish(self, rollout: Rollout) -> Scored:
        """Score what was not added, and wait. `rollout` is on the host. A collective, as `Scorer.__call__`."""
        P, G = rollout.lengths.shape
        ids = _ids(rollout)
        groups = [ids[p * G : (p + 1) * G] for p in range(P)]
        for p in range(self._own.start, self._own.stop):
            if p not in self._texts:
                self.add(p, groups[p])
        texts = [text for p in range(P) for text in self._texts.get(p) or self._scorer.texts(groups[p])]
        scores = self._agreed()
        self._ask_models(scores, texts)
        return self._scorer.scored(self._batch, rollout, texts, scores)

    def _ask_models(self, scores: Scores, texts: list[str]) -> None:
        """Fill in this host's share of what reward models say. Every host has all texts, and asks about all of them."""
        G, real = self._samples, self._real
        own = slice(self._own.start * G, self._own.stop * G)
        prompts = [prompt for prompt in self._batch.prompts[:real] for _ in range(G)]
        for column, model in self._scorer.models.items():
            verdicts = model(prompts, texts[: real * G])
            said = np.full(len(texts), np.nan)
            said[: real * G] = verdicts.scores
            scores.values[:, column] = said[own]
            self._scorer.note_faults(
                column, scores, [verdicts.faults.get(row) for row in range(own.start, own.stop)]
            )

    def _arguments(self, p: int) -> tuple[list[Any], list[Any], Columns]:
        """(prompts, completions, columns) of the G rows of a prompt."""
        prompt, G = self._batch.prompts[p], self._samples
        columns = {name: [column[p]] * G for name, column in self._batch.columns.items()}
        return [prompt] * G, [_reply(prompt, text) for text in self._texts[p]], columns

    def _agreed(self) -> Scores:
        """This host's share. A reward that stops the run stops it on every host, before any waits for another."""
        try:
            scores = None if self._fault else self._rows.finish()
        except UserError as fault:
            self._fault, scores = fault, None
        if hosts.any_process(scores is None):
            raise self._fault or UserError(
                "rewards: a reward failed on another host; its message stands there"
            )
        assert scores is not None
        return scores


def _ids(rollout: Rollout) -> list[list[int]]:
    """The tokens of each of the P * G completions."""
    rows = rollout.tokens.reshape(rollout.lengths.size, -1)
    return [row[:n].tolist() for row, n in zip(rows, rollout.lengths.ravel())]


def _reply(prompt: Any, text: str) -> Any:
    """A completion in the form of its prompt: text for text, a message for messages (TRL's convention)."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _joined_columns(own: Columns, P: int, G: int) -> Columns:
    """Columns of P * G values from each host's share of them."""
    share = hosts.own_share(P)
    rows = [slice(i * G, (i + 1) * G) for i in range(share.stop - share.start)]
    groups = [{name: column[part] for name, column in own.items()} for part in rows]
    return stacked(_from_every_host(groups, P), [G] * P)


def _from_every_host(own: list[Any], count: int) -> list[Any]:
    """`count` JSON values, of which each host has its own share, on every host in order."""
    if jax.process_count() == 1:
        return own
    texts = [np.frombuffer(json.dumps(value).encode(), np.uint8) for value in own]
    sizes = hosts.join_shares(np.array([len(text) for text in texts], np.int32), count)
    padded = np.zeros((len(texts), sizes.max()), np.uint8)
    for row, text in zip(padded, texts):
        row[: len(text)] = text
    whole = hosts.join_shares(padded, count)
    return [json.loads(row[:size].tobytes()) for row, size in zip(whole, sizes)]
