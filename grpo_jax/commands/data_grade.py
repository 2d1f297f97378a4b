"""`data grade`: how often a model solves each problem of a data set, sampled as by `eval` and judged by the rewards.

Results are saved along the way, so that the same command continues after an interruption. A row's samples depend only
on its number: neither the batch size nor an interruption changes a rate."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from grpo_jax.config.data import GradeConfig
from grpo_jax.data.curation import difficulty
from grpo_jax.data.curation.outcome import CurationOutcome
from grpo_jax.data.prompts import Prompts, digest
from grpo_jax.errors import UserError
from grpo_jax.evaluation.evaluator import SEGMENT, Evaluator
from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.status import current, phase
from grpo_jax.scoring.make_scorer import open_scorer
from grpo_jax.scoring.reward_models import find_reward_models
from grpo_jax.scoring.sample_and_score import sample_and_score
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.run import fingerprint_of
from grpo_jax.setup.sampling import RandomStream, make_sampler
from grpo_jax.setup.status import with_status
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts

Row = dict[str, Any]

SAVE_SECONDS = 30
"""An interruption loses at most so many seconds of work."""

_FREE = {
    "out",
    "overwrite",
    "easy",
    "hard",
    "prompts_per_step",
    "mesh",
    "reward_workers",
    "compilation_cache",
    "quiet",
}
"""Settings that change no pass rate."""


@with_status
def grade(config: GradeConfig, rows: Sequence[Row]) -> CurationOutcome:
    """The rows with a pass rate and a level each; rows whose prompt is too long are dropped."""
    found = find_reward_models(config.rewards)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = make_prompts(config, policy, rows)
    with jax.set_mesh(policy.mesh), open_scorer(config, policy, prompts, found) as scorer:
        identity = _identity(config, rows) | fingerprint_of(policy) | scorer.fingerprint
        grades = SavedGrades(_partial_file(config), identity)
        grades.read(config.overwrite)
        evaluator = _evaluator(config, policy, prompts, scorer)
        try:
            weights = load_sampler(policy)
            with phase("grading"):
                _sample(evaluator, weights, grades)
        finally:
            grades.write()
    rates = [grades.rate(number) for number in range(len(rows))]
    measured = [str(number) in grades.judged for number in range(len(rows))]
    return difficulty.graded(rows, rates, measured, config.easy, config.hard)


def forget(config: GradeConfig) -> None:
    """Remove the saved grades, once the result is written."""
    _partial_file(config).unlink(missing_ok=True)


def _partial_file(config: GradeConfig) -> epath.Path:
    return epath.Path(f"{config.out}.partial.json")


@dataclass
class SavedGrades:
    """The grades so far, in a file beside the result until the result is complete."""

    path: epath.Path
    identity: dict[str, Any]
    """The settings, data and models that the rates depend on."""
    judged: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row number, from 0 and as text -> (samples that solved it, samples that were judged)."""
    saved: float = field(default_factory=time.monotonic)

    def read(self, overwrite: bool) -> None:
        """Take over the grades of an interrupted run of the same settings; UserError if its settings differ."""
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text())
            before, judged = dict(found["identity"]), dict(found["judged"])
        except (ValueError, KeyError, TypeError):
            before, judged = {}, {}
        if before == self.identity:
            self.judged = {row: (solved, total) for row, (solved, total) in judged.items()}
        elif not overwrite:
            names = [name for name, value in self.identity.items() if before.get(name) != value]
            raise UserError(
                f"{self.path}: an interrupted grading with another {', '.join(names[:3])}; repeat its command "
                "to go on, or give --overwrite to start again"
            )

    def add(self, numbers: Sequence[int], successes: np.ndarray) -> None:
        """Add rows with their successes [n,G]: 1, 0, or NaN for a sample that could not be judged."""
        for number, group in zip(numbers, successes):
            known = group[~np.isnan(group)]
            self.judged[str(number)] = int(known.sum()), len(known)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        """Save the grades, and print how many there are."""
        self.saved = time.monotonic()
        if hosts.is_writer():
            write_atomically(self.path, json.dumps({"identity": self.identity, "judged": self.judged}))
            print(f"{len(self.judged)} problems graded", flush=True)

    def rate(self, number: int) -> float | None:
        """The pass rate of a row; None if no sample was judged."""
        solved, total = self.judged.get(str(number), (0, 0))
        return solved / total if total else None


def _sample(evaluator: Evaluator, weights: Any, grades: SavedGrades) -> None:
    """Sample and judge the rows without a grade. Collective."""
    for batch, real in evaluator.prompts.batches_in_order(evaluator.prompts_per_step):
        current().count(len(grades.judged), len(evaluator.prompts), "problems")
        numbers = [int(uid) for uid in batch.uids[:real]]
        # Hosts may see different files, and must decide alike.
        if not hosts.any_process(any(str(number) not in grades.judged for number in numbers)):
            continue
        _, scored = sample_and_score(evaluator.sampler, evaluator.scorer, weights, batch, real=real)
        grades.add(numbers, scored.successes[:real])


def _evaluator(config: GradeConfig, policy: Policy, prompts: Prompts, scorer: Scorer) -> Evaluator:
    sampler = make_sampler(
        config,
        policy,
        num_generations=config.samples,
        seed=config.seed,
        random_stream=RandomStream.EVALUATION,
        segment=SEGMENT,
    )
    return Evaluator(policy, prompts, scorer, sampler, prompts_per_step=config.prompts_per_step)


def _identity(config: GradeConfig, rows: Sequence[Row]) -> dict[str, Any]:
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in _FREE}
    return settings | {"data's rows": digest(rows)}
