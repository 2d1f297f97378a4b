"""A batch of prompts -> its completions and their rewards."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from grpo_jax.data.prompts import PromptBatch
from grpo_jax.rollout.protocol import Rollout, RolloutProgress, Sampler
from grpo_jax.runs.status import current, duration, phase
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer

Clock = Callable[[str], AbstractContextManager[Any]]


def sample_and_score(
    sampler: Sampler,
    scorer: Scorer,
    params: Any,
    batch: PromptBatch,
    step: int = 0,
    *,
    real: int | None = None,
    trainer_state: Any = None,
    clock: Clock = phase,
) -> tuple[Rollout, Scored]:
    """Sample P x G completions, and score each prompt's as soon as all of them have ended. Collective.

    Args:
        params: the weights, in the rollout's dtype and layout.
        real: prompts after the first `real` only fill the batch up and are not scored; None: score all.
        trainer_state: for reward functions that ask for it.
        clock: `clock("rollout")` and `clock("reward")` time the sampling and the wait for the last rewards, and
            are phases of the process's status.
    """
    with scorer.stream(batch, sampler.num_generations, trainer_state, real) as scoring:
        with clock("rollout"):
            rollout = sampler(params, batch, step, on_group=scoring.add, on_progress=_report)
        with clock("reward"):
            scored = scoring.finish(rollout)
    return rollout, scored


def _report(progress: RolloutProgress) -> None:
    """Say how far the rollout is, which is the innermost phase."""
    seconds = current().seconds
    speed = f"{progress.tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
    left = seconds * progress.steps_left / max(progress.steps, 1)
    parts = (
        f"{progress.ended:,} of {progress.completions:,} completions",
        speed,
        f"at most {duration(left)} left",
    )
    current().report(", ".join(filter(None, parts)))
