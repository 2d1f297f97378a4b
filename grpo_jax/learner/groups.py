"""What the learner asks of sampled groups. The trainer's `Groups` is one; so is whatever has these arrays (NumPy)."""

from typing import Any, Protocol


class PromptArrays(Protocol):
    """P tokenised prompts."""

    @property
    def tokens(self) -> Any:
        """[P,Tp] int32, right-padded."""

    @property
    def lengths(self) -> Any:
        """[P] int32."""


class CompletionArrays(Protocol):
    """G completions for each of P prompts."""

    @property
    def tokens(self) -> Any:
        """[P,G,Tc] int32."""

    @property
    def logprobs(self) -> Any:
        """[P,G,Tc] float32, the sampler's."""

    @property
    def lengths(self) -> Any:
        """[P,G] int32."""

    @property
    def finished(self) -> Any:
        """[P,G] bool."""

    @property
    def action_mask(self) -> Any:
        """[P,G,Tc] bool, True for tokens that the policy chose."""


class SampledGroups(Protocol):
    """What the learner asks of groups, in NumPy arrays."""

    @property
    def batch(self) -> PromptArrays:
        """The prompts."""

    @property
    def rollout(self) -> CompletionArrays:
        """Their completions."""

    @property
    def on_policy(self) -> Any:
        """[P] bool, False: sampled by older weights; read only where `Passes.carries_over`."""
