"""Sample and score a fixed set of prompts. What a prompt gets depends on neither the batch nor the mesh it is in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.evaluation.statistics import standard_error
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.protocol import Rollout
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.stopping import Stop
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.memory_budget import demand_of
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding.mesh import row_shards

# The sampler's stream of random numbers; training uses 0.
EVALUATION = 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results on P problems with N samples each. A sample succeeds when the first reward function that is asked about
    it gives it 1 or more: put the one that judges correctness first."""

    names: list[str]
    """Of the R reward functions."""
    values: np.ndarray
    """[P,N,R] float32, what each gave; NaN for None."""
    rewards: np.ndarray
    """[P,N] float32, their weighted sum; NaN where no function applied."""
    successes: np.ndarray
    """[P,N] bool."""
    lengths: np.ndarray
    """[P,N] tokens."""
    finished: np.ndarray
    """[P,N] bool; False: cut off at the longest length."""
    uids: np.ndarray
    """[P] uint32, the row that each problem is in its data set."""
    sets: list[str]
    """P names of held-out sets, where there are several; else empty ones."""
    texts: list[str]
    """P prompts as the model saw them."""
    completions: list[str]
    """P * N texts."""
    extras: dict[str, list[Any]]
    """What functions logged for each completion: P * N values a column."""
    failures: dict[str, int]
    """Rows lost to faults of reward functions, by "rewards/{name}/{kind}"."""
    metrics: dict[str, float]
    """What reward functions logged."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The first few problems' first completions, for people."""
        N = self.rewards.shape[1]
        return [
            {"prompt": text, "completion": self.completions[p * N], "reward": float(self.rewards[p, 0])}
            for p, text in enumerate(self.texts[:4])
        ]

    def summary(self) -> dict[str, float]:
        """Means over problems; `success_stderr` is the standard error over problems. Of named sets the same, under
        their names, follows."""
        sets = np.array(self.sets)
        figures = self._means(np.ones(len(sets), bool)) | self.failures | self.metrics
        for name in filter(None, dict.fromkeys(self.sets)):
            figures |= {f"{name}/{figure}": value for figure, value in self._means(sets == name).items()}
        return figures

    def _means(self, which: np.ndarray) -> dict[str, float]:
        """Over the problems of a mask."""
        successes = self.successes[which]
        return {
            "success": float(successes.mean()),
            "success_stderr": standard_error(successes.mean(1)),
            "reward": mean(self.rewards[which]),
            "length": float(self.lengths[which].mean()),
            "clipped_ratio": float(1 - self.finished[which].mean()),
            "prompts": len(successes),
        }


def mean(rewards: np.ndarray) -> float:
    """Of those that are not NaN; NaN where all are."""
    return float(np.nanmean(rewards)) if not np.isnan(rewards).all() else math.nan


class Evaluator:
    """Samples and scores a fixed set of prompts. UserError for a reward whose column they do not have."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        scorer: Scorer,
        sampling: SamplingParams,
        *,
        num_generations: int,
        max_completion_length: int,
        seed: int,
        at_a_time: int = 64,
        segment: int = 64,
        stop: Stop | None = None,
    ):
        scorer.check(prompts)
        self.policy, self.prompts, self.scorer = policy, prompts, scorer
        shards = row_shards(policy.mesh)
        wanted = max(min(at_a_time, len(prompts)), 1)
        self.at_a_time = math.ceil(wanted / shards) * shards
        self.sampler = ContinuousBatchingSampler(
            policy.cfg,
            policy.vocabulary,
            sampling,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            mesh=policy.mesh,
            seed=seed,
            random_stream=EVALUATION,
            segment=segment,
            stop=stop,
            cache_dtype=policy.rollout_cache,
            attention=policy.attention,
        )

    @property
    def demand(self) -> Demand:
        """What a batch of prompts asks of the memory."""
        return demand_of(self.policy, self.at_a_time, self.sampler, self.prompts.max_prompt_length)

    def __call__(self, params: Any, trainer_state: Any = None) -> Evaluation:
        """Evaluate weights in the rollout's dtype and layout, inside the policy's mesh. `trainer_state` goes to the
        reward functions that ask for it."""
        batches, rollouts, scores = zip(*self._parts(params, trainer_state))
        scored = Scored.join(scores)
        uids = np.concatenate([batch.uids for batch in batches])
        return Evaluation(
            names=self.scorer.pool.names,
            values=scored.values,
            rewards=scored.base,
            successes=scored.successes == 1,
            lengths=np.concatenate([rollout.lengths for rollout in rollouts]),
            finished=np.concatenate([rollout.finished for rollout in rollouts]),
            uids=uids,
            sets=[self.prompts.domains[self.prompts.domain_of(row)].name for row in uids.tolist()],
            texts=[text for batch in batches for text in batch.texts],
            completions=scored.completions,
            extras=scored.extras,
            failures=scored.failures,
            metrics=scored.metrics,
        )

    def _parts(self, params: Any, trainer_state: Any) -> Iterator[tuple[PromptBatch, Rollout, Scored]]:
        """Batch by batch. The last may be filled up with repeats, which are neither scored nor given out."""
        for batch, real in self.prompts.batches_in_order(self.at_a_time):
            with self.scorer.stream(batch, self.sampler.num_generations, trainer_state, real) as scoring:
                rollout = self.sampler(params, batch, step=0, on_group=scoring.add)
                scored = scoring.finish(rollout)
            which = np.arange(real)
            kept = replace(scored.take(which), failures=scored.failures, metrics=scored.metrics)
            yield batch.take(which), jax.tree.map(lambda x: x[:real], rollout), kept  # noqa: B023
