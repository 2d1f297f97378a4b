"""A batch of prompts -> its completions and their rewards."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from grpo_jax.data.prompts import PromptBatch
from grpo_jax.rollout.protocol import Rollout, Sampler
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer

Clock = Callable[[str], AbstractContextManager[None]]


def sample_and_score(
    sampler: Sampler,
    scorer: Scorer,
    params: Any,
    batch: PromptBatch,
    step: int = 0,
    *,
    real: int | None = None,
    trainer_state: Any = None,
    clock: Clock = lambda phase: nullcontext(),
) -> tuple[Rollout, Scored]:
    """Sample P x G completions, and score each prompt's as soon as all of them have ended. Collective.

    Args:
        params: the weights, in the rollout's dtype and layout.
        real: prompts after the first `real` only fill the batch up and are not scored; None: score all.
        trainer_state: for reward functions that ask for it.
        clock: `clock("rollout")` and `clock("reward")` time the sampling and the wait for the last rewards.
    """
    with scorer.stream(batch, sampler.num_generations, trainer_state, real) as scoring:
        with clock("rollout"):
            rollout = sampler(params, batch, step, on_group=scoring.add)
        with clock("reward"):
            scored = scoring.finish(rollout)
    return rollout, scored
