"""What the training loop, `eval`, `generate` and `reject` ask of a sampler, so that another one can take its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

OnGroup = Callable[[int, list[list[int]]], None]
"""Called with (prompt, token ids of its G completions)."""

OnTokens = Callable[[int, int, list[int], bool], None]
"""Called with (prompt, sample, its next token ids, whether they are its last)."""


@dataclass(frozen=True, kw_only=True)
class RolloutProgress:
    """How far a rollout is."""

    completions: int
    ended: int
    tokens: int  # of all completions together
    steps: int  # tokens sampled after one another
    steps_left: int  # at most so many more of them


OnProgress = Callable[[RolloutProgress], None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """Sampled completions. The end-of-sequence token is an action: it is stored, counted and scored."""

    tokens: Array  # [P,G,Tc] int32, pad_id after the end
    logprobs: Array  # [P,G,Tc] float32 under the full softmax at the sampling temperature, 0 after the end
    lengths: Array  # [P,G] int32, end-of-sequence included
    finished: Array  # [P,G] bool, False where the length limit cut the completion
    action_mask: Array  # [P,G,Tc] bool, True for tokens that the policy chose: what it is trained on

    @property
    def chosen(self) -> Array:
        """[P,G] int: how many tokens of each completion the policy chose. Figures count these, as TRL's do."""
        return self.action_mask.sum(-1)

    @staticmethod
    def of_policy(tokens: Any, logprobs: Any, lengths: Any, finished: Any) -> "Rollout":
        """A rollout whose tokens were all chosen by the policy. NumPy arrays, or traced ones."""
        numpy = np if isinstance(lengths, np.ndarray) else jnp
        mask = numpy.arange(tokens.shape[-1]) < lengths[..., None]
        return Rollout(tokens, logprobs, lengths, finished, mask)


class PromptTokens(Protocol):
    """P prompts, whole on every host; a `data.prompts.PromptBatch` is one."""

    @property
    def tokens(self) -> np.ndarray:
        """[P,Tp] int32, right-padded."""

    @property
    def lengths(self) -> np.ndarray:
        """[P] int32, at least 1."""

    @property
    def uids(self) -> np.ndarray:
        """[P] uint32, each prompt's identity: its random numbers depend on it and not on its place in the batch."""


class Sampler(Protocol):
    """Samples G completions of up to Tc tokens for each of P prompts."""

    @property
    def num_generations(self) -> int:
        """G."""

    @property
    def max_completion_length(self) -> int:
        """Tc."""

    @property
    def rows(self) -> int:
        """Completions under way at a time, at most; 0: all. The memory budget counts with it."""

    @property
    def compilations(self) -> int:
        """Programs compiled so far; 0 for a sampler that compiles none."""

    def __call__(
        self,
        params: Any,
        prompts: PromptTokens,
        step: int,
        *,
        limits: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
        on_tokens: OnTokens | None = None,
        on_progress: OnProgress | None = None,
    ) -> Rollout:
        """A rollout of NumPy arrays [P,G,...], whole on every host. Collective: every process must call it.

        The same seed, step and prompt give the same completions, whatever else is in the batch.

        Args:
            params: the weights, in the rollout's dtype and layout.
            step: of the training; 0 elsewhere.
            limits: [P,G] int32, the most tokens of each completion; None: `max_completion_length` for all.
            seeds: one for each prompt, in place of the sampler's own.
            on_group: called once for each prompt, as soon as all its completions have ended.
            on_tokens: called with each completion's tokens as they arrive.
            on_progress: called now and then.
        """
