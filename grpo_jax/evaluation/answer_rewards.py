"""Strict and flexible scoring side by side: two reward functions that differ in where they look for the answer alone.

Both run in the reward pool, a problem's samples at a time, under its deadline: what a hostile formula costs is its row.
Beside the score each logs the answer that it found and what that votes for (see `statistics.majority_at_n`).
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from grpo_jax.evaluation.answers import KINDS, Answer, Kind, elected, written
from grpo_jax.rewards.functions.text import prefill_of, text_of
from grpo_jax.rewards.load import load_reward, parameters

SCORINGS: tuple[Literal["strict", "flexible"], ...] = ("strict", "flexible")


@dataclass(frozen=True)
class Grader:
    """A reward function: 1.0 where the answer that is found is right, 0.0 where it is not, or none is found.

    Args:
        scoring: where to look.
        answer: the kind of answer, of `KINDS`.
        place: where the prompt asks for it, of `PLACES`.
        judge: the name of the reward that judges; it sees a completion that holds the answer in its place and nothing
            else. None: right is what is the same as the column `answer`.
        prefill: what every completion goes on from, beside what its own prompt says.
    """

    scoring: Literal["strict", "flexible"]
    answer: str
    place: str
    judge: str | None = None
    prefill: str | None = None
    worst: ClassVar[float] = 0.0
    """Of an answer that cannot be judged in time: it is wrong."""

    @property
    def __name__(self) -> str:
        return self.scoring

    @property
    def __signature__(self) -> inspect.Signature:
        """Asks for the columns that its judge needs."""
        needed = ["answer"]
        if self.judge:
            given = inspect.signature(self._judge.function).parameters
            must = lambda p: p.default is p.empty and p.kind is not p.VAR_KEYWORD
            needed = [name for name, p in given.items() if must(p)]
        names = dict.fromkeys(["prompts", "completions", *needed])
        plain = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        return inspect.Signature([*plain, inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)])

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores of the rows; the `answer` and the `vote` of each are logged."""
        found = [self.find(prompt, text_of(each)) for prompt, each in zip(prompts, completions, strict=True)]
        if log_extra:
            log_extra("answer", [answer and answer.text for answer in found])
            log_extra("vote", elected(self.kind, found))
        return self._scores(prompts, found, columns)

    def find(self, prompt: Any, text: str) -> Answer | None:
        """The answer in a completion; a thought that the prompt has opened belongs to it."""
        if (self.prefill or prefill_of(prompt)).rstrip().endswith("<think>"):
            text = "<think>" + text
        return self.kind.strict(text, self.place) if self.scoring == "strict" else self.kind.flexible(text)

    @property
    def kind(self) -> Kind:
        """The kind of answer."""
        return KINDS[self.answer]

    @cached_property
    def _judge(self) -> Any:
        assert self.judge is not None
        return load_reward(self.judge)

    def __getstate__(self) -> dict[str, Any]:
        """Without the judge: the process that this is sent to loads its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_judge"}

    def _scores(
        self, prompts: Sequence[Any], found: Sequence[Answer | None], columns: dict[str, Any]
    ) -> list[float | None]:
        rows = [i for i, answer in enumerate(found) if answer]
        said = [found[i] for i in rows]
        some = {
            name: [values[i] for i in rows] for name, values in columns.items() if _is_column(values, found)
        }
        scores: list[float | None] = [0.0] * len(found)
        for i, score in zip(rows, self._judged([prompts[i] for i in rows], said, some) if rows else ()):
            scores[i] = score
        return scores

    def _judged(self, prompts: list[Any], said: list[Any], columns: dict[str, Any]) -> list[float | None]:
        if self.judge is None:
            return _same_as_gold(self.kind, said, **columns)
        replies = [_reply(prompt, written(self.place, a.text)) for prompt, a in zip(prompts, said)]
        given = {"prompts": prompts, "completions": replies, **columns}
        accepted = parameters(self._judge.function)[1]
        chosen = {name: value for name, value in given.items() if accepted is None or name in accepted}
        scores = self._judge.function(**chosen)
        return list(asyncio.run(_awaited(scores)) if inspect.isawaitable(scores) else scores)


async def _awaited(scores: Awaitable[Any]) -> Any:
    return await scores


def _reply(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _is_column(values: Any, rows: Sequence[Any]) -> bool:
    return isinstance(values, list) and len(values) == len(rows)


def _same_as_gold(kind: Kind, said: list[Answer], *, answer: list[Any], **columns: Any) -> list[float | None]:
    return [float(kind.same(kind.gold(gold), each)) for each, gold in zip(said, answer, strict=True)]
