"""What every system is given: prompts, lengths, and rows that were not sampled by any of them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = ("rollout", "score", "update", "step")
SHORTEST_ID = 2  # ids 0 and 1 are padding and the end: neither is in a prompt


@dataclass(frozen=True)
class Work:
    """The sizes of a step, and what of it is measured. Every prompt has exactly `prompt_length` tokens."""

    prompts: int
    samples: int
    prompt_length: int
    completion_length: int
    long_rows: int = (
        0  # 0: every row has `completion_length` tokens; else so many have, the mean is an eighth
    )
    measures: tuple[str, ...] = MEASURES

    @property
    def rows(self) -> int:
        """Rows of a rollout."""
        return self.prompts * self.samples


WORKLOADS = {
    "equal": Work(8, 8, 64, 128),
    "skewed": Work(8, 8, 64, 512, long_rows=4, measures=("rollout",)),
    "shared_prompt": Work(4, 16, 512, 128, measures=("rollout",)),
}


def lengths(work: Work, seed: int = 0) -> np.ndarray:
    """Tokens [P,G] int32 of each completion."""
    if not work.long_rows:
        return np.full((work.prompts, work.samples), work.completion_length, np.int32)
    rng, short = np.random.default_rng(seed), work.rows - work.long_rows
    total = work.rows * work.completion_length // 8 - work.long_rows * work.completion_length
    if total < short:
        raise ValueError(f"{work.long_rows} long rows of {work.rows} leave nothing for the others")
    drawn = 1 + rng.multinomial(total - short, rng.dirichlet(np.full(short, 2.0)))
    every = work.rows // work.long_rows  # spread over the prompts
    found = np.insert(drawn, np.arange(work.long_rows) * (every - 1), work.completion_length)
    return found.reshape(work.prompts, work.samples).astype(np.int32)


def make_rows(path: Path, work: Work, vocabulary: int, seed: int = 0) -> None:
    """A file with prompts [P,Tp], lengths [P,G], completions [P,G,Tc] (0 behind the end) and advantages [P,G]."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(SHORTEST_ID, vocabulary, shape, np.int32)
    of = lengths(work, seed)
    completions = draw(work.prompts, work.samples, work.completion_length)
    completions[np.arange(work.completion_length) >= of[..., None]] = 0
    np.savez(
        path,
        prompts=draw(work.prompts, work.prompt_length),
        lengths=of,
        completions=completions,
        advantages=rng.normal(size=of.shape).astype(np.float32),
    )


def tokens(work: Work, measure: str) -> int:
    """Useful tokens of a measure: those sampled, or those that pass through the model in scoring and training."""
    sampled = int(lengths(work).sum())
    return sampled if measure in ("rollout", "step") else sampled + work.rows * work.prompt_length


def load(spec: dict[str, Any]) -> tuple[Work, dict[str, np.ndarray]]:
    """The work and the rows of a worker's specification."""
    work = Work(**spec["work"])
    with np.load(spec["rows"]) as rows:
        return work, dict(rows)


def as_json(work: Work) -> dict[str, Any]:
    """For a specification."""
    return asdict(work)
