"""What a step trains on: prompts are drawn, sampled and scored; under dynamic sampling until P groups can teach.

A collector has no state of its own. How far the curriculum sampler is, and the groups left over for the next step, are
in the run's state, which every checkpoint holds: a run that was interrupted does what it would have done without.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from grpo_jax.data.curriculum.sampler import CurriculumSampler, SamplerState
from grpo_jax.data.prompts import PromptBatch
from grpo_jax.rollout.programs import Rollout
from grpo_jax.rollout.protocol import Sampler
from grpo_jax.scoring.sample_and_score import Clock, sample_and_score
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.sharding import hosts
from grpo_jax.training.run_state import CarriedGroups, RunState, packed, unpacked


@dataclass(frozen=True, eq=False)
class Groups:
    """n prompts with G scored completions each, on the host, in order."""

    batch: PromptBatch
    rollout: Rollout  # NumPy arrays
    scored: Scored
    on_policy: np.ndarray  # [n] bool; False: sampled in the step before, by older weights
    indices: np.ndarray  # [n] int64, the sample indices of the prompts

    def __len__(self) -> int:
        return len(self.on_policy)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts, once for each completion, and those that the policy chose."""
        rollout = self.rollout
        return int(rollout.chosen.sum()) + rollout.lengths.shape[1] * int(self.batch.lengths.sum())

    def take(self, which: np.ndarray) -> "Groups":
        """Those that `which`, indices or a mask, says; without the failures and metrics of the whole."""
        which = np.arange(len(self))[which]
        return Groups(
            self.batch.take(which),
            jax.tree.map(lambda x: x[which], self.rollout),
            self.scored.take(which),
            self.on_policy[which],
            self.indices[which],
        )

    @staticmethod
    def join(parts: "Sequence[Groups]") -> "Groups":
        """Groups after one another, prompts right-padded to the widest."""
        return Groups(
            PromptBatch.join([part.batch for part in parts]),
            jax.tree.map(lambda *x: np.concatenate(x), *[part.rollout for part in parts]),
            Scored.join([part.scored for part in parts]),
            np.concatenate([part.on_policy for part in parts]),
            np.concatenate([part.indices for part in parts]),
        )


class Collector:
    """One rollout a step: its P prompts are what is trained on."""

    def __init__(
        self, curriculum: CurriculumSampler, sampler: Sampler, scorer: Scorer, prompts_per_step: int
    ):
        self.curriculum, self.sampler, self.scorer = curriculum, sampler, scorer
        self.prompts_per_step = prompts_per_step

    def __call__(
        self, params: Any, step: int, clock: Clock, state: RunState, trainer_state: Any = None
    ) -> tuple[Groups, Groups, RunState]:
        """(groups to train on, exactly P; all groups sampled and scored in this step, whose metrics it reports; the
        run's state with what the curriculum sampler has drawn, and has learned from the rewards).

        Args:
            params: the rollout's copy of the weights; nothing here holds it, or device memory, on return.
            clock: `clock("rollout")` and `clock("reward")` add up the seconds of each.
            state: of the run, after `step` steps.
            trainer_state: for reward functions that ask for it.
        """
        groups, drawn = self._sample(params, state.curriculum, step, clock, trainer_state)
        return groups, groups, state.replace(curriculum=self._learned(drawn, step, groups))

    def _sample(
        self, params: Any, state: SamplerState, step: int, clock: Clock, trainer_state: Any
    ) -> tuple[Groups, SamplerState]:
        """The next P prompts of the curriculum, sampled and scored; and the curriculum sampler's state after them."""
        indices, state = self.curriculum.draw(state, self.prompts_per_step)
        batch = self.curriculum.prompts.at(indices)
        rollout, scored = sample_and_score(
            self.sampler, self.scorer, params, batch, step, trainer_state=trainer_state, clock=clock
        )
        on_policy = np.ones(len(indices), bool)
        return Groups(batch, rollout, scored, on_policy, np.array(indices, np.int64)), state

    def _learned(self, state: SamplerState, step: int, sampled: Groups) -> SamplerState:
        """The curriculum sampler's state after a step that sampled these groups."""
        scored = sampled.scored
        known = scored.base[~np.isnan(scored.base)]
        reward = float(known.mean(dtype=np.float64)) if len(known) else float("nan")
        clipped = 1 - float(np.mean(sampled.rollout.finished))
        successes = scored.successes if self.curriculum.filters else np.empty((0, 0))
        return self.curriculum.learn(state, step + 1, sampled.indices.tolist(), successes, (reward, clipped))


class DynamicCollector(Collector):
    """Draws until P groups have rewards that differ, within `max_rollouts` rollouts of P prompts a step.

    DAPO's dynamic sampling (arXiv:2503.14476, section 3.2): a group whose rewards are all equal teaches nothing.
    Groups come in the order of their prompts. Those left over, fewer than P, come first in the next step, and so
    are one update older than its weights, never more. When the budget is used up (all prompts may be too easy, or
    too hard), groups of the step whose rewards are all equal fill it.
    """

    def __init__(
        self,
        curriculum: CurriculumSampler,
        sampler: Sampler,
        scorer: Scorer,
        prompts_per_step: int,
        max_rollouts: int,
    ):
        super().__init__(curriculum, sampler, scorer, prompts_per_step)
        self.max_rollouts = max_rollouts
        self._warned = False

    def __call__(
        self, params: Any, step: int, clock: Clock, state: RunState, trainer_state: Any = None
    ) -> tuple[Groups, Groups, RunState]:
        """As of `Collector`; the state also has the groups that are left over."""
        P = self.prompts_per_step
        carried, drawn = self._carried(state)
        rounds: list[Groups] = []
        missing = P - sum(map(len, carried))
        while missing > 0 and len(rounds) < self.max_rollouts:
            groups, drawn = self._sample(params, drawn, step, clock, trainer_state)
            rounds.append(groups)
            missing -= int(with_spread(groups.scored.base).sum())
        chosen, surplus = _divide(Groups.join([*carried, *rounds]), P)
        sampled = Groups.join(rounds)
        state = state.replace(curriculum=self._learned(drawn, step, sampled), carried=_to_carry(surplus))
        if missing > 0:
            self._warn(P - missing, P)
        return chosen, _with_figures(sampled, len(rounds), len(surplus), max(missing, 0)), state

    def _carried(self, state: RunState) -> tuple[list[Groups], SamplerState]:
        """What the step before left over, if anything: texts are decoded again. Where this stage's completions have
        another shape, the prompts of those groups are drawn again instead."""
        carried = state.carried
        if carried is None:
            return [], state.curriculum
        indices, arrays = np.array(carried.indices, np.int64), unpacked(carried.arrays)
        rollout = _rollout_of(arrays)
        if rollout.tokens.shape[1:] != (self.sampler.num_generations, self.sampler.max_completion_length):
            to_redraw = [*carried.indices, *state.curriculum.to_redraw]
            return [], replace(state.curriculum, to_redraw=to_redraw)
        batch = self.curriculum.prompts.at(indices.tolist())
        scored = self.scorer.restore(batch, rollout, arrays["base"], arrays["values"], carried.extras)
        return [Groups(batch, rollout, scored, np.zeros(len(indices), bool), indices)], state.curriculum

    def _warn(self, found: int, P: int) -> None:
        if not self._warned and hosts.is_writer():
            print(
                f"dynamic_sampling: {self.max_rollouts} rollouts gave {found} of the {P} groups of a step; groups "
                "whose rewards are all equal fill it, here and later (max_rollouts_per_step allows more)",
                file=sys.stderr,
                flush=True,
            )
        self._warned = True


def with_spread(rewards: np.ndarray) -> np.ndarray:
    """[n] bool: whether a group, a row of `rewards` [n,G], has two that are known (no NaN) and differ."""
    unknown = np.isnan(rewards)
    return np.where(unknown, -np.inf, rewards).max(1) > np.where(unknown, np.inf, rewards).min(1)


def _divide(groups: Groups, P: int) -> tuple[Groups, Groups]:
    """(P groups to train on, what is left over of those that can teach)."""
    spread = with_spread(groups.scored.base)
    useful, idle = np.flatnonzero(spread), np.flatnonzero(~spread)
    return groups.take(np.concatenate([useful, idle])[:P]), groups.take(useful[P:])


def _with_figures(sampled: Groups, rollouts: int, carried: int, short: int) -> Groups:
    """What was sampled in a step, with the figures of the sampling among its metrics."""
    figures = {
        "dynamic_sampling/rollouts": rollouts,
        "dynamic_sampling/groups_sampled": len(sampled),
        "dynamic_sampling/groups_with_spread": int(with_spread(sampled.scored.base).sum()),
        "dynamic_sampling/groups_carried": carried,  # into the next step
        "dynamic_sampling/groups_short": short,
    }
    return replace(sampled, scored=replace(sampled.scored, metrics=sampled.scored.metrics | figures))


_ROLLOUT = tuple(field.name for field in fields(Rollout))


def _rollout_of(arrays: dict[str, Any]) -> Rollout:
    """As `_to_carry` kept it; runs of earlier versions kept no mask, as the policy chose every token."""
    known = {name: arrays[name] for name in _ROLLOUT if name in arrays}
    return Rollout(**known) if "action_mask" in known else Rollout.of_policy(**known)


def _to_carry(groups: Groups) -> CarriedGroups | None:
    """Groups that are left over, without what can be computed again; None for no groups."""
    if not len(groups):
        return None
    scored = groups.scored
    arrays = {name: getattr(groups.rollout, name) for name in _ROLLOUT}
    arrays |= {"base": scored.base, "values": scored.values}
    return CarriedGroups(groups.indices.tolist(), packed(arrays), scored.extras)
