"""Scored groups -> advantages, with the divergence from the reference if it is part of the reward."""

from dataclasses import dataclass

import numpy as np

from grpo_jax.config import GRPOConfig
from grpo_jax.learner.advantages import Advantages
from grpo_jax.learner.learner import Learner
from grpo_jax.models.transformer import Params
from grpo_jax.training.collector import Groups


@dataclass(frozen=True)
class GroupAdvantages:
    """Computes advantages as the settings say."""

    config: GRPOConfig
    advantages: Advantages
    learner: Learner

    def __call__(
        self, groups: Groups, reference: Params | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Advantages [P,G] float32, or [P,G,Tc] of single tokens, and the metrics computed along the way. `reference`:
        one that follows the policy, in place of the learner's."""
        penalty, metrics = self._penalty(groups, reference)
        mask = np.asarray(groups.rollout.action_mask)
        return self.advantages(groups.scored.rewards, self._values(groups), mask, penalty), metrics

    def _values(self, groups: Groups) -> np.ndarray:
        """[P,G,n]: a value per reward function; the penalty of overlong completions is the last."""
        scored = groups.scored
        if not self.config.overlong_buffer:
            return scored.values
        return np.concatenate([scored.values, (scored.rewards - scored.base)[..., None]], axis=-1)

    def _penalty(
        self, groups: Groups, reference: Params | None
    ) -> tuple[np.ndarray | None, dict[str, float]]:
        """beta times the divergence of each token [P,G,Tc] if it is part of the reward, else None; and its metric."""
        if self.config.beta == 0 or self.config.kl_in != "reward":
            return None, {}
        divergence = self.learner.divergence(groups, reference)
        mean = float(divergence.sum(dtype=np.float64) / max(int(groups.rollout.chosen.sum()), 1))
        return self.config.beta * divergence, {"kl": mean}
