"""Cleans a data set as SRPO does: strips noise, and drops rows that cannot be learned from with a verifiable reward."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.data.curation import faults
from grpo_jax.data.curation.noise import STRIPPED, stripped
from grpo_jax.data.curation.outcome import CurationOutcome, Fault, Row, sieved
from grpo_jax.data.layouts import Layout, arrange_one
from grpo_jax.data.questions import questions, with_questions
from grpo_jax.data.traces import boxed_answer

_SPACES = re.compile(r"\s+")

Purpose = Literal["rl", "sft"]

CODE_COLUMNS = (
    *("test_cases", "tests", "test", "test_list", "unit_tests", "starter_code", "input_output"),
    *("public_tests", "private_tests", "public_test_cases", "private_test_cases"),
)
"""A row with a value in one of these columns is a programming problem."""


@dataclass(frozen=True)
class Case:
    """A row, prepared for the rules.

    arranged: the row in its layout.
    text: its question.
    code: whether it is a programming problem.
    """

    row: Row
    arranged: Row
    text: str
    code: bool

    @property
    def answer(self) -> Any:
        return self.arranged.get("answer")

    @property
    def answered(self) -> bool:
        """Whether the row's data set has answers for a reward to compare with."""
        return "answer" in self.arranged and not self.code


Rule = Callable[[Case], str | None]

_in_text = lambda find: lambda case: None if case.code else find(case.text)
_in_code = lambda find: lambda case: find(case.text) if case.code else None
_in_answer = lambda find: lambda case: find(case.answer) if case.answered else None


def _contradiction(case: Case) -> str | None:
    boxed = boxed_answer(str(case.row.get("solution") or ""))
    return faults.contradiction(case.answer, boxed) if case.answered else None


def _proof(case: Case) -> str | None:
    kinds = {str(case.row.get(name)).casefold() for name in ("question_type", "problem_type")}
    return "its own type says so" if "proof" in kinds else _in_text(faults.proof)(case)


RULES: dict[str, Rule] = {
    "multi_part": _in_text(faults.parts),
    "proof": _proof,
    "image": _in_text(faults.image),
    "table": _in_text(faults.table),
    "network": _in_code(faults.network),
    "files": _in_code(faults.files),
    "environment": _in_code(faults.environment),
    "no_answer": _in_answer(faults.no_answer),
    "several_answers": _in_answer(faults.several_answers),
    "contradiction": _contradiction,
}
"""Reason to drop a row -> the rule that finds it. They are tried in this order; the first that applies is reported."""

ABOUT_ANSWERS = frozenset({"no_answer", "several_answers", "contradiction", "conflict"})
"""Reasons that do not apply to supervised fine-tuning."""

REASONS = ("unusable", *RULES, "conflict")
"""All reasons. `unusable`: the layout cannot read the row; `conflict`: another row has the same question and another
answer."""


def clean(
    rows: Sequence[Row],
    layout: Layout,
    purpose: Purpose = "rl",
    allow: Sequence[str] = (),
    value: Callable[[object], str] = faults.normal,
) -> CurationOutcome:
    """The rows that can be trained on, with noise stripped from their questions.

    Args:
        purpose: `rl` requires an answer if the layout has one, `sft` a completion.
        allow: reasons for which no row is dropped. `unusable` cannot be one of them.
        value: maps equal answers to the same text. The default recognises equal numbers, but not fractions.
    """
    looked = [_look(row, layout, purpose) for row in rows]
    skip = {*allow, *(ABOUT_ANSWERS if purpose == "sft" else ())}
    rules = {name: rule for name, rule in RULES.items() if name not in skip}
    found = [case if not isinstance(case, Case) else _first(rules, case) for case in looked]
    if "conflict" not in skip:
        # Rows that are dropped anyway do not conflict with others.
        sound = [case if isinstance(case, Case) and not fault else None for case, fault in zip(looked, found)]
        found = [fault or conflict for fault, conflict in zip(found, _conflicts(sound, value))]
    changed, noise = _strip(rows, looked, found, layout)
    return sieved(rows, found, changed, {"layout": layout.name, "purpose": purpose, "stripped": noise})


def _look(row: Row, layout: Layout, purpose: Purpose) -> Case | Fault:
    """The case of a row, or why the row is unusable."""
    column = "completion" if purpose == "sft" and "completion" not in row else None
    try:
        arranged = arrange_one(row, layout, column)
    except ValueError as error:
        return "unusable", str(error)
    if purpose == "sft" and not arranged.get("completion"):
        return "unusable", "there is no column completion"
    # Collapse white space: the rules do not depend on it, but their running time does.
    text = _SPACES.sub(lambda run: "\n" if "\n" in run[0] else " ", "\n".join(questions(row, layout)))
    code = any(row.get(name) for name in CODE_COLUMNS) or "```" in text
    return Case(row, arranged, text, code)


def _first(rules: dict[str, Rule], case: Case) -> Fault | None:
    return next(((name, found) for name, rule in rules.items() if (found := rule(case)) is not None), None)


def _conflicts(sound: Sequence[Case | None], value: Callable[[object], str]) -> list[Fault | None]:
    """A fault for each row whose question occurs in other rows with another answer; neither is known to be right."""
    asked: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, case in enumerate(sound, start=1):
        if case and case.answered and case.text:
            asked[_same(case.text)][value(case.answer)].append(number)
    found: list[Fault | None] = [None] * len(sound)
    for by_answer in asked.values():
        for answer, own in by_answer.items():
            first = min((rows[0] for other, rows in by_answer.items() if other != answer), default=None)
            for number in own if first else ():
                found[number - 1] = "conflict", f"row {first} asks the same with another answer"
    return found


def _same(text: str) -> str:
    """A question with white space normalized; case and punctuation stay, because they matter in formulas."""
    return " ".join(text.split())


def _strip(
    rows: Sequence[Row], looked: Sequence[Case | Fault], found: Sequence[Fault | None], layout: Layout
) -> tuple[list[Row], dict[str, list[int]]]:
    """All rows, with noise stripped from those without a fault; and kind of noise -> numbers of the rows with it."""
    changed = list(rows)
    noise: dict[str, list[int]] = {kind: [] for kind in STRIPPED}
    for index, (case, fault) in enumerate(zip(looked, found)):
        if isinstance(case, Case) and fault is None:
            changed[index], kinds = _stripped(case, layout)
            for kind in kinds:
                noise[kind].append(index + 1)
    return changed, {kind: numbers for kind, numbers in noise.items() if numbers}


def _stripped(case: Case, layout: Layout) -> tuple[Row, set[str]]:
    """The row without noise, and the kinds of noise that it had. A question that would become empty stays as it is."""
    kinds: set[str] = set()

    def strip(text: str) -> str:
        rest, found = stripped(text, code=case.code)
        kinds.update(found if rest else ())
        return rest or text

    return with_questions(case.row, layout, strip), kinds
