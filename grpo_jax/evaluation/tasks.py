"""Task files: the prompt, the rows, and how an answer is found and judged. Each task is one YAML file.

Those in `tasks/` are known by name, any other by its path, such as `mine.yaml`. This module imports no jax.
"""

import hashlib
import json
import re
import string
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from grpo_jax.config import checks as check
from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Mapped, Name, Positive
from grpo_jax.config.load import parse_yaml, placed, read_file
from grpo_jax.data.layouts import arrange
from grpo_jax.errors import UserError, nearest
from grpo_jax.evaluation.answer_rewards import SCORINGS, AnswerReward
from grpo_jax.evaluation.answers import IN_WORDS, KINDS

Row = dict[str, Any]

LETTERS = "ABCDEFGHIJ"

ASKED = "asked"
"""The column with the task's prompt; not `prompt`, which a known layout may replace."""

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_completion_length",
    "max_prompt_length",
    "greedy",
)
"""Settings of `eval` that a task may set; those that the user sets take precedence."""


class Choices(Settings):
    """A multiple-choice question with one right option. The order of the options depends on the question alone."""

    right: Name
    """The column with the right option."""
    wrong: list[Name] = Field(min_length=1, max_length=len(LETTERS) - 1)
    """The columns with the wrong options."""


class Task(Settings):
    """A task file."""

    about: Name
    """One line of description."""
    source: Name
    """Whose protocol this is, and which choices are our own."""
    dataset: Name
    """A file or folder, a hub id, tfds:name, or a task that generates its rows."""
    split: Name = "test"
    """Its split."""
    prompt: Name | None = None
    """The question, with columns in braces, such as {problem}; none: the prompt of the data set's layout."""
    system_prompt: Name | None = None
    """The system message."""
    prefill: Name | None = None
    """The text that the assistant's turn begins with, e.g. <think>."""
    columns: Mapped | None = None
    """Our name of a column -> the data's, or a list of spellings, of which the first that exists is taken."""
    choices: Choices | None = None
    """The columns with the options: {choices} in the prompt lists them, and `answer` is the letter of the right one."""
    answer: Literal["number", "math", "choice", "expression", "people", "code", "text"]
    """The kind of answer: how it is read, and when two answers are the same."""
    place: Literal["tag", "box", "hash", "fence"]
    """Where the prompt asks for the answer; strict scoring looks only there."""
    reward: Name | None = None
    """The reward that judges an answer; none: an answer is right if it is the same as the column `answer`."""
    samples: Positive | None = None
    """Completions of each prompt, if no published number exists."""
    published_samples: Positive | None = None
    """Completions of each prompt that published figures average over; another number needs --other_samples."""
    temperature: float | None = Field(None, ge=0)
    """Temperature at which completions are sampled."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: the least probability mass that stays."""
    top_k: Count | None = None
    """How many of the likeliest tokens stay; 0: all."""
    min_p: float | None = Field(None, ge=0, lt=1)
    """Tokens stay that have at least this share of the likeliest token's probability."""
    greedy: bool | None = None
    """Whether to decode each prompt greedily as well."""
    max_prompt_length: Positive | None = None
    """Longest prompt, in tokens."""
    max_completion_length: Positive | None = None
    """Longest completion, in tokens."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        both = f"samples = {self.samples}: published_samples is {self.published_samples} already; keep one"
        neither = (
            "samples: must be given, or published_samples, the number that published figures average over"
        )
        given = (self.samples is not None) + (self.published_samples is not None)
        check.first(
            (neither, None, both)[given], self._unknown_place(), self._bad_prompt(), self._bad_columns()
        )
        return self

    def _bad_prompt(self) -> str | None:
        twice = "braces that are meant as such are written twice, {{ and }}"
        try:
            fields = list(string.Formatter().parse(self.prompt or ""))
        except ValueError:
            return f"prompt = {self.prompt!r}: a brace has no other; {twice}"
        for _, name, spec, conversion in fields:
            if name is not None and (
                spec or conversion or not re.fullmatch(r"[^\s.\[\]{}][^.\[\]{}]*", name)
            ):
                return f"prompt: {{{name}}} is no column; {twice}"
        return None

    def _bad_columns(self) -> str | None:
        for name, theirs in (self.columns or {}).items():
            spellings = theirs if isinstance(theirs, list) else [theirs]
            if not spellings or not all(isinstance(one, str) and one for one in spellings):
                return f"columns: {name} = {theirs!r}: must be the name of a column, or a list of spellings"
        return None

    def _unknown_place(self) -> str | None:
        if self.place in KINDS[self.answer].places or self.answer == "text":
            return None
        places = ", ".join(KINDS[self.answer].places)
        return f"place = {self.place}: an answer that is {self.answer} stands in one of {places}"

    @property
    def usual_samples(self) -> int:
        """N: the number of completions of each prompt."""
        return self.published_samples or self.samples or 1

    def answer_rewards(self, prefill: str | None = None) -> list[AnswerReward]:
        """The reward functions `strict` and `flexible`, for completions that continue `prefill`."""
        return [AnswerReward(scoring, self.answer, self.place, self.reward, prefill) for scoring in SCORINGS]

    @property
    def votes(self) -> bool:
        """Whether answers can be compared, so that a majority vote makes sense."""
        return KINDS[self.answer].votes

    def sampling(self) -> dict[str, Any]:
        """The settings of `eval` that this task sets."""
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}

    def rows(
        self, rows: Sequence[Row], prompt_column: str = "prompt", layout: str | None = None
    ) -> list[Row]:
        """The data set's rows with this task's prompt in the column `ASKED`, and the columns that its judge needs.
        `prompt_column` and `layout` are the data's own, for a task without a prompt of its own.

        Raises:
            UserError: a column is missing; the message lists those that exist.
        """
        named = [self._renamed(row, number) for number, row in enumerate(rows, start=1)]
        if self.prompt is None:
            return [{**row, ASKED: row["prompt"]} for row in arrange(named, prompt_column, layout)]
        return [{**row, ASKED: [self._ask(row, number)]} for number, row in enumerate(named, start=1)]

    def _renamed(self, row: Row, number: int) -> Row:
        found = dict(row)
        for ours, theirs in (self.columns or {}).items():
            spellings = [theirs] if isinstance(theirs, str) else list(theirs)
            name = next((name for name in spellings if name in row), None)
            if name is None:
                raise UserError(_lacks(row, number, spellings, f"columns: {{{ours}: THEIRS}} in a task file"))
            found[ours] = row[name]
        return found if self.choices is None else found | self._choices(row, number)

    def _choices(self, row: Row, number: int) -> Row:
        """`choices`, one a line, and the letter of the right one. The options' texts determine their order."""
        assert self.choices is not None
        columns = [self.choices.right, *self.choices.wrong]
        if missing := [name for name in columns if name not in row]:
            raise UserError(_lacks(row, number, missing[:1], "choices: {right, wrong} in a task file"))
        options = [str(row[name]).strip() for name in columns]
        digest = lambda text: hashlib.sha256(json.dumps([sorted(options), text]).encode()).digest()
        order = sorted(options, key=digest)
        lines = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, order))
        return {"choices": lines, "answer": LETTERS[order.index(options[0])]}

    def _ask(self, row: Row, number: int) -> dict[str, str]:
        assert self.prompt is not None
        needed = [name for _, name, _, _ in string.Formatter().parse(self.prompt) if name]
        if missing := [name for name in needed if name not in row]:
            raise UserError(_lacks(row, number, missing[:1], "the prompt of a task file"))
        return {"role": "user", "content": self.prompt.format(**{name: row[name] for name in needed})}


def _lacks(row: Row, number: int, names: Sequence[str], fix: str) -> str:
    wanted = " or ".join(f"'{name}'" for name in names)
    near = nearest(names[0], row)
    have = ", ".join(row)
    return (
        f"dataset, row {number}: no column {wanted}{near} among {have}; name the one that is meant in {fix}"
    )


def names() -> list[str]:
    """Names of the built-in tasks, sorted."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")
    )


def load_task(name: str) -> Task:
    """The built-in task of that name, or the task in that file. UserError with file and line for an invalid one."""
    known = name in names()
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8") if known else read_file(name)
    values, places = parse_yaml(text, f"task {name}" if known else name)
    try:
        return Task(**values)
    except UserError as fault:
        raise UserError("\n".join(placed(line, places) for line in str(fault).splitlines())) from None


def describe() -> list[tuple[str, Task]]:
    """(name, task) of every built-in task."""
    return [(name, load_task(name)) for name in names()]


def list_tasks() -> int:
    """Print the built-in tasks: `grpo-jax eval --list`."""
    for name, task in describe():
        whose = "published" if task.published_samples else "ours"
        print(f"{name}: {task.about}")
        print(f"    rows     {task.dataset} ({task.split})")
        print(f"    samples  {task.usual_samples} ({whose})")
        print(f"    answer   {task.answer}, asked for in {IN_WORDS[task.place]}")
        print(f"    source   {' '.join(task.source.split())}")
    print("Run one with: grpo-jax eval --model M --task NAME [--data PATH]")
    return 0


def _folder() -> Any:
    return files("grpo_jax.evaluation") / "tasks"
