"""What a run knows besides its weights: how far it is in the data, and what it has counted."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any

import numpy as np

from grpo_jax.data.curriculum.sampler import SamplerState


@dataclass(frozen=True)
class CarriedGroups:
    """Groups that dynamic sampling leaves over for the next step: what cannot be computed again, as JSON values."""

    indices: Sequence[int]  # [n] sample indices of the prompts
    arrays: str  # of the rollout and its rewards, as `packed` writes them
    extras: dict[str, list[Any]]  # columns that reward functions logged


@dataclass(frozen=True)
class RunState:
    """Goes into every checkpoint beside the weights. It is frozen: a step makes the next one with `replace`, so that a
    step that fails changes nothing."""

    curriculum: SamplerState
    _: KW_ONLY
    num_tokens: int = 0  # of prompts and completions, since the run began
    seconds: float = 0.0  # of all steps
    carried: CarriedGroups | None = None
    samples: Mapping[str, int] = field(default_factory=dict)  # file of samples -> its bytes
    callbacks: Mapping[str, Any] = field(default_factory=dict)  # what callbacks keep
    before: Mapping[str, Any] | None = None  # evaluation of the starting model; None: not made, or no prompts
    stopped: bool = False  # by a callback, or at the end of the curriculum

    def replace(self, **changes: Any) -> "RunState":
        """The same but for these fields."""
        return replace(self, **changes)

    def counted(self, tokens: int, seconds: float) -> "RunState":
        """After a step of so many tokens and seconds."""
        return replace(self, num_tokens=self.num_tokens + tokens, seconds=self.seconds + seconds)

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint keeps it. The keys are older than the names of the fields: runs of earlier versions go on."""
        carried = self.carried and {
            "tickets": list(self.carried.indices),
            "arrays": self.carried.arrays,
            "extras": self.carried.extras,
        }
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {"course": self.curriculum.to_json(), "carried": carried}

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "RunState":
        """What `to_json` wrote; a key that an earlier version did not write has its default."""
        carried = saved.get("carried")
        return RunState(
            curriculum=SamplerState.from_json(saved["course"]),
            carried=carried and CarriedGroups(carried["tickets"], carried["arrays"], carried["extras"]),
            **{name: saved[name] for name in _PLAIN if name in saved},
        )


@dataclass(frozen=True)
class SFTRunState:
    """What a supervised run knows besides its weights, frozen as `RunState` is."""

    num_tokens: int = 0  # since the run began
    seconds: float = 0.0  # of all steps
    before: Mapping[str, Any] | None = None  # evaluation of the starting model; None: not made, or no rows
    nll: float = float("nan")  # of the last step, nats a token
    after: Mapping[str, Any] | None = None  # the newest evaluation; None: not made yet

    def stepped(self, metrics: Mapping[str, float]) -> "SFTRunState":
        """After a step with these metrics."""
        tokens, seconds = self.num_tokens + int(metrics["num_tokens"]), self.seconds + metrics["step_time"]
        return replace(self, num_tokens=tokens, seconds=seconds, nll=metrics["nll"])

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "SFTRunState":
        """What `to_json` wrote, or an earlier version did, which wrote `after` only where there was one."""
        return SFTRunState(**saved)


_PLAIN = ("num_tokens", "seconds", "samples", "callbacks", "before", "stopped")


def packed(arrays: Mapping[str, Any]) -> str:
    """Arrays as text, bit by bit."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # not compressed: it is made in every step
    return base64.b64encode(file.getvalue()).decode()


def unpacked(text: str) -> dict[str, Any]:
    """The arrays that `packed` wrote."""
    with np.load(io.BytesIO(base64.b64decode(text))) as file:
        return dict(file)
