"""Strict and flexible scoring side by side: two reward functions that differ only in where they look for the answer.

Both run in the reward pool, on one problem's samples at a time and under the pool's deadline, so a hostile formula
costs only its row. Besides the score each logs the answer that it found and its vote (see `statistics.majority_at_n`).
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
class AnswerReward:
    """A reward function: 1.0 if the completion's answer is right, 0.0 if it is wrong or there is none.

    Args:
        scoring: where to look for the answer.
        answer: the kind of answer, a key of `KINDS`.
        place: where the prompt asks for it, a key of `PLACES`.
        judge: the name of the reward that judges; it sees a completion that holds only the answer, in its place. None:
            an answer is right if it is the same as the column `answer`.
        prefill: the text that every completion continues, besides its own prompt's.
    """

    scoring: Literal["strict", "flexible"]
    answer: str
    place: str
    judge: str | None = None
    prefill: str | None = None
    worst: ClassVar[float] = 0.0
    """The score of an answer that is not judged in time: wrong."""

    @property
    def __name__(self) -> str:
        return self.scoring

    @property
    def __signature__(self) -> inspect.Signature:
        """The columns that the judge needs are required."""
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
        """The scores of the rows; logs the `answer` and the `vote` of each."""
        found = [self.find(prompt, text_of(each)) for prompt, each in zip(prompts, completions, strict=True)]
        if log_extra:
            log_extra("answer", [answer and answer.text for answer in found])
            log_extra("vote", elected(self.kind, found))
        return self._scores(prompts, found, columns)

    def find(self, prompt: Any, text: str) -> Answer | None:
        """The answer in a completion. If the prompt opens the thinking, the completion is read as if it did."""
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
        """The state to pickle, without the judge, which each worker process loads itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_judge"}

    def _scores(
        self, prompts: Sequence[Any], found: Sequence[Answer | None], columns: dict[str, Any]
    ) -> list[float | None]:
        rows = [i for i, answer in enumerate(found) if answer]
        answers = [found[i] for i in rows]
        some = {
            name: [values[i] for i in rows] for name, values in columns.items() if _is_column(values, found)
        }
        scores: list[float | None] = [0.0] * len(found)
        for i, score in zip(rows, self._judged([prompts[i] for i in rows], answers, some) if rows else ()):
            scores[i] = score
        return scores

    def _judged(self, prompts: list[Any], answers: list[Any], columns: dict[str, Any]) -> list[float | None]:
        if self.judge is None:
            return _same_as_gold(self.kind, answers, **columns)
        replies = [_reply(prompt, written(self.place, a.text)) for prompt, a in zip(prompts, answers)]
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


def _same_as_gold(
    kind: Kind, answers: list[Answer], *, answer: list[Any], **columns: Any
) -> list[float | None]:
    return [float(kind.same(kind.gold(gold), found)) for found, gold in zip(answers, answer, strict=True)]
