"""Samples and scores a fixed set of prompts. A prompt's results depend neither on its batch nor on the mesh."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.evaluation.statistics import standard_error
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.protocol import Rollout, Sampler
from grpo_jax.runs.status import current, phase
from grpo_jax.scoring.sample_and_score import sample_and_score
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.memory_budget import demand_of
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding.mesh import row_shards

SEGMENT = 64  # tokens of a sampler's segment, where no setting says otherwise


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Results on P problems with N samples each. A sample succeeds when the first reward function that applies to it
    gives it at least 1, so name the function that checks correctness first."""

    names: list[str]
    """Of the R reward functions."""
    values: np.ndarray
    """[P,N,R] float32, the value of each function; NaN for None."""
    rewards: np.ndarray
    """[P,N] float32, their weighted sum; NaN if no function applied."""
    successes: np.ndarray
    """[P,N] bool."""
    lengths: np.ndarray
    """[P,N] tokens."""
    finished: np.ndarray
    """[P,N] bool; False: cut at the length limit."""
    uids: np.ndarray
    """[P] uint32, each problem's row in its data set."""
    sets: list[str]
    """P names of evaluation sets; empty if there is only one set."""
    texts: list[str]
    """P prompts as the model saw them."""
    completions: list[str]
    """P * N texts."""
    extras: dict[str, list[Any]]
    """Columns that functions logged: P * N values each."""
    failures: dict[str, int]
    """Rows lost to faults of functions, by "rewards/{name}/{kind}"."""
    metrics: dict[str, float]
    """Metrics that functions logged."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The first completions of the first four problems, for people to read."""
        N = self.rewards.shape[1]
        return [
            {"prompt": text, "completion": self.completions[p * N], "reward": float(self.rewards[p, 0])}
            for p, text in enumerate(self.texts[:4])
        ]

    def summary(self) -> dict[str, float]:
        """Means over problems, and the same for each named set under its name; `success_stderr` is the standard error
        over problems."""
        sets = np.array(self.sets)
        figures = self._means(np.ones(len(sets), bool)) | self.failures | self.metrics
        for name in filter(None, dict.fromkeys(self.sets)):
            figures |= {f"{name}/{figure}": value for figure, value in self._means(sets == name).items()}
        return figures

    def _means(self, mask: np.ndarray) -> dict[str, float]:
        """Means over the problems of a mask."""
        successes = self.successes[mask]
        return {
            "success": float(successes.mean()),
            "success_stderr": standard_error(successes.mean(1)),
            "reward": mean(self.rewards[mask]),
            "length": float(self.lengths[mask].mean()),
            "clipped_ratio": float(1 - self.finished[mask].mean()),
            "prompts": len(successes),
        }


def mean(rewards: np.ndarray) -> float:
    """The mean without NaN; NaN if all are NaN."""
    return float(np.nanmean(rewards)) if not np.isnan(rewards).all() else math.nan


class Evaluator:
    """Samples and scores a fixed set of prompts, about `prompts_per_step` at a time."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        scorer: Scorer,
        sampler: Sampler,
        *,
        prompts_per_step: int = 64,
    ):
        self.policy, self.prompts, self.scorer, self.sampler = policy, prompts, scorer, sampler
        shards = row_shards(policy.mesh)
        wanted = max(min(prompts_per_step, len(prompts)), 1)
        self.prompts_per_step = math.ceil(wanted / shards) * shards

    @property
    def demand(self) -> Demand:
        """The memory that a batch of prompts needs."""
        return demand_of(self.policy, self.prompts_per_step, self.sampler, self.prompts.max_prompt_length)

    def __call__(self, params: Any, trainer_state: Any = None) -> Evaluation:
        """Evaluate weights in the rollout's dtype and layout, inside the policy's mesh. Collective.

        trainer_state: for reward functions that ask for it.
        """
        with phase("evaluation"):
            batches, rollouts, scores = zip(*self._batches(params, trainer_state))
        scored = Scored.join(scores)
        uids = np.concatenate([batch.uids for batch in batches])
        return Evaluation(
            names=self.scorer.pool.names,
            values=scored.values,
            rewards=scored.base,
            successes=scored.successes == 1,
            lengths=np.concatenate([np.asarray(rollout.chosen) for rollout in rollouts]),
            finished=np.concatenate([rollout.finished for rollout in rollouts]),
            uids=uids,
            sets=[self.prompts.domains[self.prompts.domain_of(row)].name for row in uids.tolist()],
            texts=[text for batch in batches for text in batch.texts],
            completions=scored.completions,
            extras=scored.extras,
            failures=scored.failures,
            metrics=scored.metrics,
        )

    def _batches(self, params: Any, trainer_state: Any) -> Iterator[tuple[PromptBatch, Rollout, Scored]]:
        """Each batch with its results. The last may be filled up with repeated prompts; their results are left out."""
        done = 0
        for batch, real in self.prompts.batches_in_order(self.prompts_per_step):
            current().count(done, len(self.prompts), "prompts")
            done += real
            rollout, scored = sample_and_score(
                self.sampler, self.scorer, params, batch, real=real, trainer_state=trainer_state
            )
            first = np.arange(real)
            scored = replace(scored.take(first), failures=scored.failures, metrics=scored.metrics)
            yield batch.take(first), jax.tree.map(lambda x: x[:real], rollout), scored  # noqa: B023
