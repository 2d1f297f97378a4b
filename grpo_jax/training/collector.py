"""What a step trains on: prompts are drawn, sampled and scored; under dynamic sampling until P groups can teach.

A collector remembers nothing from step to step. Where the course of prompts stands, and the groups left over for the
next step, are in the run's notes, which every checkpoint holds, and each step reads them from there: a run that was
interrupted goes the very way of one that was not.
"""

import base64
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from grpo_jax.data.curriculum.sampler import Course, Standing
from grpo_jax.data.prompts import PromptBatch
from grpo_jax.rollout.programs import Rollout
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.sharding import hosts

Clock = Callable[[str], AbstractContextManager[None]]
Notes = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Groups:
    """n prompts with G scored completions each, on the host, in order."""

    batch: PromptBatch
    rollout: Rollout  # NumPy arrays
    scored: Scored
    fresh: np.ndarray  # [n] bool; False: sampled in the step before, by older weights
    tickets: np.ndarray  # [n] int64, of the prompts

    def __len__(self) -> int:
        return len(self.fresh)

    def take(self, which: np.ndarray) -> "Groups":
        """Those that `which`, indices or a mask, says; without the failures and metrics of the whole."""
        which = np.arange(len(self))[which]
        return Groups(
            self.batch.take(which),
            jax.tree.map(lambda x: x[which], self.rollout),
            self.scored.take(which),
            self.fresh[which],
            self.tickets[which],
        )

    @staticmethod
    def join(parts: "Sequence[Groups]") -> "Groups":
        """Groups after one another, prompts right-padded to the widest."""
        return Groups(
            PromptBatch.join([part.batch for part in parts]),
            jax.tree.map(lambda *x: np.concatenate(x), *[part.rollout for part in parts]),
            Scored.join([part.scored for part in parts]),
            np.concatenate([part.fresh for part in parts]),
            np.concatenate([part.tickets for part in parts]),
        )


class Collector:
    """One rollout a step: its P prompts are what is trained on."""

    def __init__(self, course: Course, sampler: Sampler, scorer: Scorer, prompts_per_step: int):
        self.course, self.sampler, self.scorer, self.prompts_per_step = (
            course,
            sampler,
            scorer,
            prompts_per_step,
        )

    def __call__(
        self, params: Any, step: int, clock: Clock, notes: Notes, trainer_state: Any = None
    ) -> tuple[Groups, Groups]:
        """(groups to train on, exactly P; all groups sampled and scored in this step, whose metrics it reports).

        Args:
            params: the rollout's copy of the weights; nothing here holds it, or device memory, on return.
            clock: `clock("rollout")` and `clock("reward")` add up the seconds of each.
            notes: of the run, JSON values; changed only when the step has succeeded. `course` says where the course
                stands, and what it has learned from this step.
            trainer_state: for reward functions that ask for it.
        """
        at = self.course.standing(notes.get("course"))
        groups, at = self._sample(params, at, step, clock, trainer_state)
        notes["course"] = self._learned(at, step, groups)
        return groups, groups

    def _sample(
        self, params: Any, at: Standing, step: int, clock: Clock, trainer_state: Any
    ) -> tuple[Groups, Standing]:
        """The next P prompts of the course, sampled and scored; and where it stands then."""
        tickets, at = self.course.draw(at, self.prompts_per_step)
        batch = self.course.prompts.at(tickets)
        with self.scorer.stream(batch, self.sampler.samples, trainer_state) as scoring:
            with clock("rollout"):  # groups are scored as soon as they are complete
                arrays = batch.tokens, batch.lengths, batch.uids
                rollout = self.sampler(params, *arrays, step, on_group=scoring.add)
            with clock("reward"):  # what is left of it
                scored = scoring.finish(rollout)
        fresh = np.ones(len(tickets), bool)
        return Groups(batch, rollout, scored, fresh, np.array(tickets, np.int64)), at

    def _learned(self, at: Standing, step: int, sampled: Groups) -> Notes:
        """Where the course stands after a step that sampled these groups."""
        scored = sampled.scored
        known = scored.base[~np.isnan(scored.base)]
        reward = float(known.mean(dtype=np.float64)) if len(known) else float("nan")
        clipped = 1 - float(np.mean(sampled.rollout.finished))
        successes = scored.successes if self.course.screens else np.empty((0, 0))
        return self.course.learn(at, step + 1, sampled.tickets.tolist(), successes, (reward, clipped)).noted()


class DynamicCollector(Collector):
    """Draws until P groups have rewards that differ, within `max_rollouts` rollouts of P prompts a step.

    DAPO's dynamic sampling (arXiv:2503.14476, section 3.2): a group whose rewards are all equal teaches nothing.
    Groups come in the order of their prompts. Those left over, fewer than P, come first in the next step, and so
    are one update older than its weights, never more. When the budget is used up (all prompts may be too easy, or
    too hard), groups of the step whose rewards are all equal fill it.
    """

    def __init__(
        self, course: Course, sampler: Sampler, scorer: Scorer, prompts_per_step: int, max_rollouts: int
    ):
        super().__init__(course, sampler, scorer, prompts_per_step)
        self.max_rollouts = max_rollouts
        self._told = False

    def __call__(
        self, params: Any, step: int, clock: Clock, notes: Notes, trainer_state: Any = None
    ) -> tuple[Groups, Groups]:
        """As of `Collector`; `notes` also keeps `carried`, what is left over."""
        P = self.prompts_per_step
        carried, at = self._carried(notes)
        rounds: list[Groups] = []
        missing = P - sum(map(len, carried))
        while missing > 0 and len(rounds) < self.max_rollouts:
            sampled, at = self._sample(params, at, step, clock, trainer_state)
            rounds.append(sampled)
            missing -= int(with_spread(rounds[-1].scored.base).sum())
        chosen, surplus = _divide(Groups.join([*carried, *rounds]), P)
        notes |= {"course": self._learned(at, step, Groups.join(rounds)), "carried": _noted(surplus)}
        if missing > 0:
            self._tell(P - missing, P)
        return chosen, _with_figures(Groups.join(rounds), len(rounds), len(surplus), max(missing, 0))

    def _carried(self, notes: Notes) -> tuple[list[Groups], Standing]:
        """What the step before left over, if anything: texts are decoded again; and where the course stands."""
        at, noted = self.course.standing(notes.get("course")), notes.get("carried")
        if noted is None:
            return [], at
        tickets, arrays = np.array(noted["tickets"], np.int64), _unpacked(noted["arrays"])
        rollout = Rollout(**{name: arrays[name] for name in _ROLLOUT})
        if rollout.tokens.shape[1:] != (self.sampler.samples, self.sampler.width):
            return [], replace(at, again=[*noted["tickets"], *at.again])
        batch = self.course.prompts.at(tickets.tolist())
        scored = self.scorer.restore(batch, rollout, arrays["base"], arrays["values"], noted["extras"])
        return [Groups(batch, rollout, scored, np.zeros(len(tickets), bool), tickets)], at

    def _tell(self, found: int, P: int) -> None:
        if not self._told and hosts.is_writer():
            print(
                f"dynamic_sampling: {self.max_rollouts} rollouts gave {found} of the {P} groups of a step; groups "
                "whose rewards are all equal fill it, here and later (max_rollouts_per_step allows more)",
                file=sys.stderr,
                flush=True,
            )
        self._told = True


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


def _noted(groups: Groups) -> Notes | None:
    """What cannot be computed again of groups that are left over, as JSON values; None for no groups."""
    if not len(groups):
        return None
    scored = groups.scored
    arrays = {name: getattr(groups.rollout, name) for name in _ROLLOUT}
    arrays |= {"base": scored.base, "values": scored.values}
    return {"tickets": groups.tickets.tolist(), "arrays": _packed(arrays), "extras": scored.extras}


def _packed(arrays: dict[str, Any]) -> str:
    """Arrays as text, bit by bit."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # not compressed: it is made in every step
    return base64.b64encode(file.getvalue()).decode()


def _unpacked(text: str) -> dict[str, Any]:
    with np.load(io.BytesIO(base64.b64decode(text))) as file:
        return dict(file)
