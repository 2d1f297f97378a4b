"""Scores rollouts: decodes the tokens, has each host score its own prompts, and joins the shares of all hosts."""

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
from grpo_jax.rewards.pool.batch import shortened
from grpo_jax.rollout.programs import Rollout
from grpo_jax.scoring.reward_models import RewardModel
from grpo_jax.scoring.scored import Columns, Scored, means, stacked
from grpo_jax.sharding import hosts


class Scorer:
    """Scores rollouts with the reward functions of a pool and with reward models.

    Args:
        pool: n reward functions; placeholders for the reward models among them.
        weights: [n], of the sum; None: 1 each.
        overlong: (limit, buffer) to add DAPO's penalty for long completions (`soft_overlong`); None: no penalty.
        models: index in the pool -> reward model. They score a rollout when all of it has been sampled.
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
        self._reported: set[tuple[str, str]] = set()  # (function, kind of fault) pairs printed so far

    @property
    def model_bytes(self) -> int:
        """Bytes of the reward models' weights on each device."""
        return sum(model.bytes for model in self.models.values())

    @property
    def fingerprint(self) -> dict[str, str]:
        """Identifies the weights of the reward models: name -> digest."""
        return {f"reward model {self.pool.names[n]}": model.digest for n, model in self.models.items()}

    def check(self, prompts: Prompts) -> None:
        """Check that the rewards can score these prompts.

        Raises:
            UserError: a reward needs a column that the data lack, no reward has its columns in one of the domains of a
                mixture, or a reward model cannot read the prompts.
        """
        columns = {"prompts", "completions", "completion_ids", *prompts.columns}
        self.pool.check_columns(columns, prompts.nested)
        for model in self.models.values():
            model.check(prompts)
        for domain in prompts.domains:
            lacks = frozenset(prompts.columns) - domain.columns
            if len(self.pool.idle(lacks)) == len(self.pool.names):
                has = ", ".join(sorted(domain.columns))
                raise UserError(f"rewards: none has the columns it needs in '{domain.name}'; it has {has}")

    def __call__(self, batch: PromptBatch, rollout: Rollout, trainer_state: Any = None) -> Scored:
        """Score a rollout of NumPy arrays. Collective: every process must call it.

        Functions that take `trainer_state` get a copy of it.
        """
        with self.stream(batch, rollout.lengths.shape[1], trainer_state) as scoring:
            return scoring.finish(rollout)

    def stream(
        self, batch: PromptBatch, samples: int, trainer_state: Any = None, real: int | None = None
    ) -> "ScoringStream":
        """Score a rollout of `samples` completions per prompt while it is sampled: see `ScoringStream`.

        Prompts after the first `real` only pad the batch, and no function scores them; None: there are none.
        """
        return ScoringStream(
            self, batch, samples, trainer_state, len(batch.prompts) if real is None else real
        )

    def scored(self, batch: PromptBatch, rollout: Rollout, texts: list[str], scores: Scores) -> Scored:
        """The rewards of the whole rollout, from this host's share of the scores. Collective."""
        P, G = rollout.lengths.shape
        values, base = self._joined(scores.values, P, G)
        shaping = self._shaping(rollout)
        metrics = self._metrics(scores, len(scores.values))
        if self.overlong:
            metrics["rewards/overlong/mean"] = float(shaping.mean())
        failures = self._failures(scores, P * G)
        extras, success_functions = _joined_columns(scores.extras, P, G), self.success_functions(batch)
        return Scored(
            rewards=base + shaping,
            base=base,
            values=values,
            completions=texts,
            failures=failures,
            extras=extras,
            success_functions=success_functions,
            metrics=metrics,
        )

    def restore(
        self, batch: PromptBatch, rollout: Rollout, base: np.ndarray, values: np.ndarray, extras: Columns
    ) -> Scored:
        """The `Scored` of an earlier call, from the parts that cannot be recomputed."""
        return Scored(
            rewards=base + self._shaping(rollout),
            base=base,
            values=values,
            completions=self.texts(_ids(rollout)),
            failures={},
            extras=extras,
            success_functions=self.success_functions(batch),
            metrics={},
        )

    def success_functions(self, batch: PromptBatch) -> np.ndarray:
        """[P] int, the index of the first function that scores each prompt; a reward model only if there is no
        function, because its scores have no value that means success."""
        order = sorted(range(len(self.pool.names)), key=lambda n: n in self.models)
        scoring = lambda lacks: (n for n in order if n not in self.pool.idle(lacks))
        return np.array([next(scoring(lacks), 0) for lacks in batch.lacks], np.int64)

    def texts(self, ids: list[list[int]]) -> list[str]:
        """Completions without special tokens."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _shaping(self, rollout: Rollout) -> np.ndarray:
        """The overlong penalty, [P,G] float32, to add to the weighted sum."""
        limit, buffer = self.overlong or (0, 0)
        return soft_overlong(rollout.lengths, limit, buffer).astype(np.float32)

    def _joined(self, own: np.ndarray, P: int, G: int) -> tuple[np.ndarray, np.ndarray]:
        """(values [P,G,n], their weighted sum [P,G]), bit-identical on every host, so that all decide alike."""
        # Converted to float32 also with a single process, so that the number of processes changes no bit.
        own = own.astype(np.float32)
        both = np.column_stack([own, combine(own, self.weights).astype(np.float32)])
        both = hosts.join_shares(both.reshape(-1, G, len(self.weights) + 1), P)
        return both[..., :-1], both[..., -1]

    def _metrics(self, scores: Scores, rows: int) -> dict[str, float]:
        """The metrics that functions logged: means over all hosts, weighted by their rows."""
        parts = _from_every_host([{"metrics": scores.metrics, "rows": rows}], jax.process_count())
        return means([part["metrics"] for part in parts], [part["rows"] for part in parts])

    def note_faults(self, column: int, scores: Scores, why: list[str | None]) -> None:
        """Count the rows that a reward model could not score, as rows on which a function fails. Collective.

        Args:
            why: for each of this host's rows the reason, or None if it was scored.

        Raises:
            UserError: there is such a row, and on_error is "stop".
        """
        name, reasons = self.pool.names[column], [reason for reason in why if reason]
        scores.errors[name] += len(reasons)
        if reasons:
            self.pool.messages[name].setdefault("errors", reasons[0])
        if hosts.any_process(bool(reasons) and self.pool.on_error == "stop"):
            raise UserError(
                f"rewards: '{name}' failed: {(reasons or ['on another host'])[0]}\n"
                "fix that (shorter rows: max_completion_length), or set on_reward_error to count"
            )

    def _failures(self, scores: Scores, rows: int) -> dict[str, int]:
        """Lost rows of all hosts, by metric name. Collective.

        Prints the first fault of each kind once, and once that a function fails on every row of a step: a service that
        is down for a step costs that step, not the run.
        """
        kinds = {"errors": scores.errors, "timeouts": scores.timeouts, "nans": scores.nans}
        counts = hosts.sum_over_processes(
            [[kind[name] for name in self.pool.names] for kind in kinds.values()]
        )
        self._report_faults()
        for name, lost in zip(self.pool.names, counts.sum(0)):
            if lost == rows and hosts.is_writer():
                self._report_once(
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

    def report_unscored(self, scored: Scored, batch: PromptBatch, real: int) -> None:
        """Print once, with its columns, a row of the first `real` prompts that no function gives a number."""
        if (found := scored.unscored(real)) is None or not hosts.is_writer():
            return
        (p, g), samples = found, scored.rewards.shape[1]
        row = {name: column[p] for name, column in batch.columns.items()}
        row |= {"prompt": batch.prompts[p], "completion": scored.completions[p * samples + g]}
        values = ", ".join(f"{name} = {shortened(repr(value))}" for name, value in row.items())
        self._report_once(
            ("", "all None"),
            f"every function returned None for a completion, and nothing is learned from it: {values}\n"
            "make sure that at least one function returns a number for each row",
        )

    def _report_faults(self) -> None:
        for name, messages in self.pool.messages.items():
            for kind, why in messages.items():
                self._report_once((name, kind), f"'{name}' had {kind}; the first: {why}")

    def _report_once(self, fault: tuple[str, str], sentence: str) -> None:
        if fault not in self._reported:
            self._reported.add(fault)
            print(f"rewards: {sentence}", file=sys.stderr, flush=True)


class ScoringStream:
    """Scores a rollout while it is sampled; made by `Scorer.stream`. Leaving its `with` block early cancels it.

    Every process must add every prompt, in the same order, and call `finish`: each scores its own share.
    """

    def __init__(self, scorer: Scorer, batch: PromptBatch, samples: int, trainer_state: Any, real: int):
        self._scorer, self._batch, self._samples, self._real = scorer, batch, samples, real
        self._own = hosts.own_share(len(batch.prompts))
        self._texts: dict[int, list[str]] = {}  # G of each own prompt that was added
        self._fault: UserError | None = None
        self._rows: Stream = scorer.pool.stream((self._own.stop - self._own.start) * samples, trainer_state)

    def __enter__(self) -> "ScoringStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.cancel()

    def add(self, p: int, completion_ids: list[list[int]]) -> None:
        """Add the token ids, without padding, of the G completions of prompt `p`. Returns at once.

        Raises:
            UserError: a reward failed, and that stops the run. On many hosts only `finish` raises it: the others are
                still sampling, and would wait for this one.
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
        """The functions (indices) of the pool that do not score a prompt."""
        pool = self._scorer.pool
        if p >= self._real:
            return frozenset(range(len(pool.names)))
        return pool.idle(self._batch.lacks[p]) | pool.models.keys()

    def finish(self, rollout: Rollout) -> Scored:
        """Add the remaining prompts and wait for all scores. `rollout` holds NumPy arrays. Collective."""
        P, G = rollout.lengths.shape
        ids = _ids(rollout)
        groups = [ids[p * G : (p + 1) * G] for p in range(P)]
        for p in range(self._own.start, self._own.stop):
            if p not in self._texts:
                self.add(p, groups[p])
        texts = [text for p in range(P) for text in self._texts.get(p) or self._scorer.texts(groups[p])]
        scores = self._own_scores()
        self._ask_models(scores, texts)
        scored = self._scorer.scored(self._batch, rollout, texts, scores)
        self._scorer.report_unscored(scored, self._batch, self._real)
        return scored

    def _ask_models(self, scores: Scores, texts: list[str]) -> None:
        """Fill in this host's share of the reward models' scores. Every host has all texts and scores all of them."""
        G, real = self._samples, self._real
        own = slice(self._own.start * G, self._own.stop * G)
        prompts = [prompt for prompt in self._batch.prompts[:real] for _ in range(G)]
        for column, model in self._scorer.models.items():
            verdicts = model(prompts, texts[: real * G])
            padded = np.full(len(texts), np.nan)
            padded[: real * G] = verdicts.scores
            scores.values[:, column] = padded[own]
            self._scorer.note_faults(
                column, scores, [verdicts.faults.get(row) for row in range(own.start, own.stop)]
            )

    def _arguments(self, p: int) -> tuple[list[Any], list[Any], Columns]:
        """(prompts, completions, columns) of the G rows of a prompt."""
        prompt, G = self._batch.prompts[p], self._samples
        columns = {name: [column[p]] * G for name, column in self._batch.columns.items()}
        return [prompt] * G, [_reply(prompt, text) for text in self._texts[p]], columns

    def _own_scores(self) -> Scores:
        """This host's share of the scores. An error that stops the run is raised on every host, so that none waits."""
        try:
            scores = None if self._fault else self._rows.finish()
        except UserError as fault:
            self._fault, scores = fault, None
        if hosts.any_process(scores is None):
            raise self._fault or UserError("rewards: a reward failed on another host; see the message there")
        assert scores is not None
        return scores


def _ids(rollout: Rollout) -> list[list[int]]:
    """The tokens of each of the P * G completions."""
    rows = rollout.tokens.reshape(rollout.lengths.size, -1)
    return [row[:n].tolist() for row, n in zip(rows, rollout.lengths.ravel())]


def _reply(prompt: Any, text: str) -> Any:
    """A completion in the form of its prompt: text for a text, a message for messages (TRL's convention)."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _joined_columns(own: Columns, P: int, G: int) -> Columns:
    """Columns of P * G values from each host's share of them."""
    share = hosts.own_share(P)
    rows = [slice(i * G, (i + 1) * G) for i in range(share.stop - share.start)]
    groups = [{name: column[part] for name, column in own.items()} for part in rows]
    return stacked(_from_every_host(groups, P), [G] * P)


def _from_every_host(own: list[Any], count: int) -> list[Any]:
    """All `count` JSON values in order, of which each host passes its own share. Collective."""
    if jax.process_count() == 1:
        return own
    texts = [np.frombuffer(json.dumps(value).encode(), np.uint8) for value in own]
    sizes = hosts.join_shares(np.array([len(text) for text in texts], np.int32), count)
    padded = np.zeros((len(texts), sizes.max()), np.uint8)
    for row, text in zip(padded, texts):
        row[: len(text)] = text
    whole = hosts.join_shares(padded, count)
    return [json.loads(row[:size].tobytes()) for row, size in zip(whole, sizes)]
