"""Layouts: convert the columns of public data sets to `prompt`, `answer` and, on request, `completion`.

A row with the prompt column is left unchanged. The layouts below are recognised by their columns, or named by the
setting `layout`. They turn a question into a conversation of one user message, so that the model's chat template
applies. All other columns are kept for reward functions and curricula.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.data import public_sets as sets
from grpo_jax.data.nested import field, has_field, nested_names
from grpo_jax.data.public_sets import gsm8k_answer
from grpo_jax.errors import UserError, nearest

__all__ = [
    "LAYOUTS",
    "PLAIN",
    "Layout",
    "arrange",
    "arrange_one",
    "gsm8k_answer",
    "named",
    "names",
    "recognise",
]

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a kind of data set, and how to convert its rows."""

    name: str
    sets: str
    """Public data sets with this layout, for the documentation."""
    columns: frozenset[str]
    """The columns by which it is recognised."""
    question: str | None
    """The column with the question, a text or a conversation; None if the question is made of numbers."""
    ask: Callable[[Row], Row]
    """Row -> columns to add or replace. Raises KeyError or ValueError for a bad row."""
    trace: Callable[[Row], str] | None = None
    """Row -> the completion to learn from, `<think>..</think>` and the answer; None if the data set has none."""
    accepts: Callable[[Row], bool] = lambda row: True
    """A further condition on rows with these columns."""
    replaces_prompt: bool = False
    """Whether rows that already have a `prompt` are converted too."""

    def fits(self, row: Row) -> bool:
        """Whether a row has this layout."""
        free = self.replaces_prompt or "prompt" not in row
        return bool(free and self.columns and self.columns <= row.keys() and self.accepts(row))


def _layout(
    name: str, sets: str, columns: str, question: str | None, ask: Any, trace: Any = None, **more: Any
) -> Layout:
    return Layout(
        name=name,
        sets=sets,
        columns=frozenset(columns.split()),
        question=question,
        ask=ask,
        trace=trace,
        **more,
    )


_THOUGHTS = ("system conversations", "conversations", sets.ask_openthoughts, sets.trace_openthoughts)

LAYOUTS = (
    # Knights and knaves: its `prompt` already holds another model's chat markup, so `quiz` is taken instead.
    _layout(
        "knights_and_knaves",
        "knights and knaves, 2 to 8 people",
        "quiz names solution_text_format",
        "quiz",
        sets.ask_knights,
        sets.trace_knights,
        replaces_prompt=True,
    ),
    _layout(
        "verl",
        "data prepared for verl",
        "prompt data_source reward_model",
        "prompt",
        sets.ask_verl,
        accepts=lambda row: has_field(row, "reward_model.ground_truth"),
        replaces_prompt=True,
    ),
    _layout(
        "gsm8k",
        "GSM8K",
        "question answer",
        "question",
        sets.ask_gsm8k,
        sets.trace_gsm8k,
        accepts=lambda row: "####" in str(row["answer"]),
    ),
    _layout("limo", "LIMO", "question solution answer", "question", sets.ask_limo, sets.trace_solution),
    _layout("question_answer", "any", "question answer", "question", sets.ask_question),
    _layout(
        "openr1_math",
        "OpenR1-Math-220k",
        "problem answer generations",
        "problem",
        sets.ask_math,
        sets.trace_openr1,
    ),
    _layout(
        "openthoughts_metadata",
        "OpenThoughts-114k (config metadata)",
        "problem deepseek_reasoning deepseek_solution ground_truth_solution",
        "problem",
        sets.ask_openthoughts_metadata,
        sets.trace_openthoughts_metadata,
    ),
    _layout(
        "math",
        "MATH, MATH-500, NuminaMath-CoT",
        "problem solution",
        "problem",
        sets.ask_math,
        sets.trace_solution,
        accepts=lambda row: "level" in row or "answer" not in row,
    ),
    _layout(
        "deepscaler",
        "DeepScaleR-Preview, NuminaMath-1.5",
        "problem solution answer",
        "problem",
        sets.ask_math,
        sets.trace_solution,
    ),
    _layout("problem_answer", "any", "problem answer", "problem", sets.ask_problem),
    _layout("openthoughts", "OpenThoughts-114k", *_THOUGHTS),
    _layout("bespoke_stratos", "Bespoke-Stratos-17k", *_THOUGHTS),
    _layout(
        "dolphin_r1",
        "dolphin-r1 (reasoning)",
        "messages reasoning answer",
        "messages",
        sets.ask_messages,
        sets.trace_dolphin,
    ),
    _layout("countdown_tasks", "Countdown-Tasks-3to4", "nums target", None, sets.ask_countdown),
    _layout("messages", "any chat", "messages", "messages", sets.ask_messages, sets.trace_messages),
)
"""Tried in this order; the first that fits is used. Of two with the same columns, the second must be named."""

PLAIN = "plain"
"""The layout that uses the prompt column unchanged, whatever other columns there are."""


def names() -> list[str]:
    """The values of the setting `layout`."""
    return [PLAIN, *(layout.name for layout in LAYOUTS)]


def plain(prompt_column: str = "prompt") -> Layout:
    """The layout that uses the prompt column unchanged."""
    return _layout(PLAIN, "your own", "", prompt_column, lambda row: {"prompt": field(row, prompt_column)})


def named(name: str) -> Layout:
    """The layout with this name. Raises UserError, with all names, if there is none."""
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    known = f"layouts are {', '.join(names())}"
    raise UserError(f"layout = {name!r}: no such layout{nearest(name, names())}; {known}")


def recognise(first: Row, prompt_column: str = "prompt", name: str | None = None) -> Layout:
    """The layout of a data set: the named one, or the first that fits its first row.

    Raises:
        UserError: there is no such layout, or the data set lacks its columns.
    """
    if name is not None and name != PLAIN:
        layout = named(name)
        if missing := sorted(layout.columns - first.keys()):
            have = ", ".join(first)
            raise UserError(f"layout = {name!r}: the data have no column '{missing[0]}' among {have}")
        return layout
    for layout in LAYOUTS if prompt_column == "prompt" and name is None else ():
        if layout.fits(first):
            return layout
    if not has_field(first, prompt_column):
        columns = [*first, *nested_names(first)]
        close = nearest(prompt_column, columns)
        raise UserError(
            f"dataset: no column '{prompt_column}'{close} among {', '.join(columns)}; "
            "set prompt_column to the one that holds the prompts"
        )
    return plain(prompt_column)


def arrange(
    rows: Sequence[Row],
    prompt_column: str = "prompt",
    layout: str | None = None,
    *,
    completion_column: str | None = None,
) -> list[Row]:
    """Rows with a usable `prompt` each: text, or a list of {role, content} messages.

    The layout is the named one, or recognised by the first row. A `prompt_column` other than "prompt" is used
    unchanged, without a layout. If a `completion_column` is given that the rows lack, the layout's trace fills it.

    Raises:
        UserError: the column is missing, or rows have no usable prompt (with their number, and the first of them).
    """
    if not rows:
        raise UserError("dataset: no rows")
    found = recognise(rows[0], prompt_column, layout)
    lacks = completion_column is not None and completion_column not in rows[0]
    column = completion_column if lacks and found.trace else None
    arranged, faults = [], []
    for number, row in enumerate(rows, start=1):
        try:
            arranged.append(arrange_one(row, found, column))
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        raise UserError(f"dataset: {len(faults)} of {len(rows)} rows cannot be used; {faults[0]}")
    return arranged


def arrange_one(row: Row, layout: Layout, completion_column: str | None = None) -> Row:
    """Convert one row. Raises ValueError, saying what is wrong with it."""
    try:
        made = {**row, **layout.ask(row)}
        check(made["prompt"])
        if completion_column and layout.trace:
            made[completion_column] = layout.trace(row)
    except KeyError as error:
        raise ValueError(f"there is no column {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(str(error)) from None
    return made


def check(prompt: Any) -> None:
    """Raise ValueError, saying what is wrong, unless `prompt` is text or a list of messages, and not blank."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return
    if not isinstance(prompt, list) or not all(_is_message(item) for item in prompt):
        raise ValueError("the prompt is neither text nor a list of messages with a role and a text content")
    if not any(message["content"].strip() for message in prompt):
        raise ValueError("the prompt is empty")


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("role", "content"))
