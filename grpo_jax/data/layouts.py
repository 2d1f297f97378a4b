"""From the columns that a data set has to the ones that we use: `prompt`, and `answer` where there is one.

A row that has the prompt column passes through as it is. The layouts below are recognised by their columns,
and turn a question into a conversation of one user message, so that the model's chat template applies. Every
other column stays: reward functions may ask for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.data.countdown import ask
from grpo_jax.errors import UserError, nearest

Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A data set known by its columns."""

    columns: frozenset[str]
    arrange: Callable[[Row], Row]
    """Columns to add or replace; KeyError or ValueError for a bad row."""
    accepts: Callable[[Row], bool] = lambda row: True
    replaces_prompt: bool = False


def _user(text: str) -> list[dict[str, str]]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the question is empty")
    return [{"role": "user", "content": text}]


def gsm8k_answer(solution: str) -> str:
    """The number after the last `####`, without commas and spaces: '... #### 1,234' -> '1234'."""
    _, mark, answer = solution.rpartition("####")
    answer = "".join(answer.replace(",", "").split())
    if not mark or not answer:
        raise ValueError("'answer' has no number after '####'")
    return answer


def _gsm8k(row: Row) -> Row:
    return {
        "prompt": _user(row["question"]),
        "answer": gsm8k_answer(str(row["answer"])),
        "solution": row["answer"],
    }


def _knights(row: Row) -> Row:
    return {"prompt": _user(row["quiz"]), "answer": row["solution_text_format"]}


def _countdown(row: Row) -> Row:
    return {"prompt": ask(row["nums"], row["target"]), "numbers": list(row["nums"])}


LAYOUTS = (
    # Knights and knaves: its `prompt` already holds another model's chat markup, so `quiz` is taken instead.
    Layout(frozenset({"quiz", "names", "solution_text_format"}), _knights, replaces_prompt=True),
    Layout(frozenset({"question", "answer"}), _gsm8k, accepts=lambda row: "####" in str(row["answer"])),
    Layout(frozenset({"question", "answer"}), lambda row: {"prompt": _user(row["question"])}),
    Layout(frozenset({"problem", "answer"}), lambda row: {"prompt": _user(row["problem"])}),
    Layout(frozenset({"nums", "target"}), _countdown),
)


def arrange(rows: Sequence[Row], prompt_column: str = "prompt") -> list[Row]:
    """Rows with a usable `prompt` each: text, or a list of {role, content} messages.

    A `prompt_column` other than "prompt" is taken as it stands and no layout is tried. The layout is chosen
    by the first row.
    UserError: no such column (with those there are), or rows that have no usable prompt (how many, and the
    first).
    """
    if not rows:
        raise UserError("dataset: no rows")
    layout = _layout(rows[0], prompt_column)
    take = layout.arrange if layout else lambda row: {"prompt": row[prompt_column]}
    arranged, faults = [], []
    for number, row in enumerate(rows, start=1):
        try:
            arranged.append({**row, **take(row)})
            check(arranged[-1]["prompt"])
        except KeyError as error:
            faults.append(f"row {number} has no column {error}")
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        raise UserError(f"dataset: {len(faults)} of {len(rows)} rows cannot be used; {faults[0]}")
    return arranged


def _layout(first: Row, prompt_column: str) -> Layout | None:
    """The layout of a data set, or None when its prompt column is taken as it stands."""
    for layout in LAYOUTS if prompt_column == "prompt" else ():
        free = layout.replaces_prompt or "prompt" not in first
        if free and layout.columns <= first.keys() and layout.accepts(first):
            return layout
    if prompt_column not in first:
        close = nearest(prompt_column, first)
        columns = ", ".join(first)
        raise UserError(
            f"dataset: no column '{prompt_column}'{close} among {columns}; "
            "set prompt_column to the one that holds the prompts"
        )
    return None


def check(prompt: Any) -> None:
    """ValueError, saying what is wrong, unless `prompt` is text or a list of messages, and not blank."""
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
