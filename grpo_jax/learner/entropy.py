"""The entropy of the policy's next-token distributions as a mask and as a bonus."""

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp
from jax import Array


def high_entropy_mask(entropy: Array, mask: Array, quantile: float) -> Array:
    """1 for the `quantile` share of the tokens with the highest entropy, [B,Tc]; 0 where masked.

    `quantile` in (0, 1]; over all rows given, which must be the whole mini-batch ("Beyond the 80/20 rule",
    arXiv:2506.01939, which keeps 0.2).
    """
    ordered = jnp.sort(jnp.where(mask > 0, entropy, jnp.inf), axis=None)
    position = (1 - quantile) * jnp.maximum(mask.sum() - 1, 0.0)
    low, high = (ordered[place(position).astype(jnp.int32)] for place in (jnp.floor, jnp.ceil))
    # Between equal neighbours this gives exactly their value. A weighted sum may round up, and would then leave out
    # every token of that entropy. NaN, and so no token, if all are masked.
    threshold = low + (position - jnp.floor(position)) * (high - low)
    return ((entropy >= threshold) & (mask > 0)).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EntropyControl:
    """The state of the adaptive bonus. It is saved with the weights, so that a resumed run continues identically."""

    coef: Array  # [] float32
    last: Array  # [] float32, mean entropy at the last update; infinity before the first


@dataclass(frozen=True)
class EntropyBonus:
    """Adds coef times the mean entropy to the objective.

    Adaptive (Skywork-OR1, arXiv:2505.22312): the coefficient rises by `step` after an update whose entropy was
    at most `target`, falls by as much otherwise, within [lowest, largest]; it acts only while the last update's
    entropy was at most the target.
    """

    coef: float = 0.0
    _: KW_ONLY
    adaptive: bool = False
    lowest: float = 0.0
    largest: float = 1.0
    step: float = 0.005
    target: float = 0.2

    @property
    def is_on(self) -> bool:
        """Whether the loss has the term; an adaptive coefficient that starts at 0 may rise."""
        return self.adaptive or self.coef != 0

    def start(self) -> EntropyControl | None:
        """The state before the first update; None when the coefficient is fixed."""
        return EntropyControl(jnp.float32(self.coef), jnp.float32(jnp.inf)) if self.adaptive else None

    def weight(self, control: EntropyControl | None) -> Array:
        """The coefficient [] of the next update."""
        if control is None:
            return jnp.float32(self.coef)
        return jnp.where(control.last <= self.target, control.coef, 0.0)

    def after(self, control: EntropyControl | None, entropy: Array) -> EntropyControl | None:
        """The state after an update whose mean entropy, over the tokens the bonus acts on, was `entropy` []."""
        if control is None:
            return None
        step = jnp.where(entropy <= self.target, self.step, -self.step)
        return EntropyControl(jnp.clip(control.coef + step, self.lowest, self.largest), entropy)


NO_BONUS = EntropyBonus()
