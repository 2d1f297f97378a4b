"""How often a model solves each problem of a data set: sampled as `eval` samples, judged by the rewards, and kept as it
goes, so that the same command goes on after an interruption. Rows are drawn by their number alone: how many are sampled
at a time, and where it was interrupted, does not change a rate."""

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
from grpo_jax.evaluation.evaluator import Evaluator
from grpo_jax.rewards import RewardPool
from grpo_jax.runs.files import write_atomically
from grpo_jax.scoring.reward_models import find_reward_models, open_reward_models
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.run import fingerprint_of
from grpo_jax.setup.sampling import sampling_of, stop_of
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts

Row = dict[str, Any]

SAVE_SECONDS = 30
"""What an interruption costs at most."""

_FREE = {
    "out",
    "overwrite",
    "easy",
    "hard",
    "prompts_per_step",
    "mesh",
    "reward_workers",
    "compilation_cache",
}
"""Settings that change no pass rate."""


def grade(config: GradeConfig, rows: Sequence[Row]) -> CurationOutcome:
    """The rows with a pass rate and a level each; those whose prompt is too long are dropped."""
    found = find_reward_models(config.rewards)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = _prompts(config, policy, rows)
    pool = RewardPool(
        config.rewards,
        workers=config.reward_workers,
        timeout=config.reward_timeout,
        on_error=config.on_reward_error,
    )
    with pool, jax.set_mesh(policy.mesh):
        models = open_reward_models(found, policy, config)
        scorer = Scorer(pool, None, policy.tokenizer, models=models)
        identity = _identity(config, rows) | fingerprint_of(policy) | scorer.fingerprint
        notes = Notes(epath.Path(f"{config.out}.partial.json"), identity)
        notes.read(config.overwrite)
        evaluator = _evaluator(config, policy, prompts, scorer)
        try:
            _sample(evaluator, load_sampler(policy), notes)
        finally:
            notes.write()
    rates = [notes.rate(number) for number in range(len(rows))]
    measured = [str(number) in notes.judged for number in range(len(rows))]
    return difficulty.graded(rows, rates, measured, config.easy, config.hard)


def forget(config: GradeConfig) -> None:
    """Remove the notes: the result has been written."""
    epath.Path(f"{config.out}.partial.json").unlink(missing_ok=True)


@dataclass
class Notes:
    """What is known of the rows, in a file beside the result until that is there."""

    path: epath.Path
    identity: dict[str, Any]
    """What the rates depend on."""
    judged: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row number, from 0 and as text -> (samples that solved it, samples that were judged)."""
    saved: float = field(default_factory=time.monotonic)

    def read(self, overwrite: bool) -> None:
        """Take over what an interrupted run of the same settings left; UserError for one of others."""
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text())
            before, judged = dict(found["identity"]), dict(found["judged"])
        except (ValueError, KeyError, TypeError):
            before, judged = {}, {}
        if before == self.identity:
            self.judged = {row: (solved, of) for row, (solved, of) in judged.items()}
        elif not overwrite:
            names = [name for name, value in self.identity.items() if before.get(name) != value]
            raise UserError(
                f"{self.path}: an interrupted grading with another {', '.join(names[:3])}; repeat its command "
                "to go on, or give --overwrite to begin anew"
            )

    def add(self, numbers: Sequence[int], successes: np.ndarray) -> None:
        """Rows with their successes [n,G]: 1, 0, or NaN where nothing was judged."""
        for number, group in zip(numbers, successes):
            known = group[~np.isnan(group)]
            self.judged[str(number)] = int(known.sum()), len(known)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        """Save, and say how far it is."""
        self.saved = time.monotonic()
        if hosts.is_writer():
            write_atomically(self.path, json.dumps({"identity": self.identity, "judged": self.judged}))
            print(f"{len(self.judged)} problems graded", flush=True)

    def rate(self, number: int) -> float | None:
        """The pass rate of a row; None when nothing was judged."""
        solved, of = self.judged.get(str(number), (0, 0))
        return solved / of if of else None


def _sample(evaluator: Evaluator, weights: Any, notes: Notes) -> None:
    """Sample and judge the rows that are not known yet."""
    for batch, real in evaluator.prompts.batches_in_order(evaluator.at_a_time):
        numbers = [int(uid) for uid in batch.uids[:real]]
        # Every host decides alike, whatever files it sees.
        if not hosts.any_process(any(str(number) not in notes.judged for number in numbers)):
            continue
        with evaluator.scorer.stream(batch, evaluator.sampler.num_generations, real=real) as scoring:
            rollout = evaluator.sampler(weights, batch, step=0, on_group=scoring.add)
            scored = scoring.finish(rollout)
        notes.add(numbers, scored.successes[:real])


def _prompts(config: GradeConfig, policy: Policy, rows: Sequence[Row]) -> Prompts:
    return Prompts(
        rows,
        policy.tokenizer,
        max_prompt_length=config.max_prompt_length,
        system_prompt=config.system_prompt,
        prefill=config.prefill,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=config.prompt_column,
        layout=config.layout,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def _evaluator(config: GradeConfig, policy: Policy, prompts: Prompts, scorer: Scorer) -> Evaluator:
    return Evaluator(
        policy,
        prompts,
        scorer,
        sampling_of(config, policy),
        num_generations=config.samples,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        at_a_time=config.prompts_per_step,
        stop=stop_of(config, policy),
    )


def _identity(config: GradeConfig, rows: Sequence[Row]) -> dict[str, Any]:
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in _FREE}
    return settings | {"data's rows": digest(rows)}
