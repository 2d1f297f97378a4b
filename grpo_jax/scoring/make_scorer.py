"""Settings -> a scorer, with the pool and the reward models that it needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from grpo_jax.config import EvalConfig
from grpo_jax.config.data import GradeConfig
from grpo_jax.config.reject import RejectConfig
from grpo_jax.data.prompts import Prompts
from grpo_jax.rewards import RewardPool
from grpo_jax.scoring.reward_models import CheckedModel, RewardModel, open_reward_models
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy


def make_scorer(
    pool: RewardPool,
    policy: Policy,
    models: Mapping[int, RewardModel],
    prompts: Prompts,
    *,
    weights: list[float] | None = None,
    overlong: tuple[int, int] | None = None,
) -> Scorer:
    """The scorer of a pool and its reward `models`; `weights` and `overlong` as of `Scorer`. UserError for a reward
    that needs a column which the prompts do not have."""
    scorer = Scorer(pool, weights, policy.tokenizer, overlong, models)
    scorer.check(prompts)
    return scorer


@contextmanager
def open_scorer(
    config: EvalConfig | GradeConfig | RejectConfig,
    policy: Policy,
    prompts: Prompts,
    found: Mapping[int, CheckedModel],
    rewards: Sequence[Any] | None = None,
) -> Iterator[Scorer]:
    """A scorer with a pool of its own, which ends with the `with`.

    Args:
        found: the models among the rewards, as `find_reward_models` found them before the policy was opened.
        rewards: in place of the settings' own.
    """
    with RewardPool(
        config.rewards if rewards is None else rewards,
        workers=config.reward_workers,
        timeout=config.reward_timeout,
        on_error=config.on_reward_error,
    ) as pool:
        yield make_scorer(pool, policy, open_reward_models(found, policy, config), prompts)
