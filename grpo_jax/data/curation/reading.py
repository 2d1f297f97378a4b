"""Reads the questions of rows as text, whatever their columns are called."""

from collections.abc import Sequence

from grpo_jax.data.layouts import LAYOUTS, Layout, Row, arrange_one, recognise
from grpo_jax.data.questions import questions
from grpo_jax.errors import UserError


def asked(rows: Sequence[Row], prompt_column: str = "prompt", layout: str | None = None) -> list[str]:
    """Each row's question as text; '' for a row without one.

    The layout of the first row is used. A row in which it finds nothing is read by its own columns, because files may
    combine several data sets.

    Raises:
        UserError: the first row has no layout.
    """
    first = recognise(rows[0], prompt_column, layout)
    return [_asked(row, first) or _asked_its_own_way(row, prompt_column, layout) for row in rows]


def _asked_its_own_way(row: Row, prompt_column: str, layout: str | None) -> str:
    try:
        own = [recognise(row, prompt_column, layout)]
    except UserError:
        own = []
    # Try all layouts: the question is enough here, even if other columns of the layout are missing.
    if prompt_column == "prompt" and layout is None:
        own += LAYOUTS
    return next((text for one in own if (text := _asked(row, one))), "")


def _asked(row: Row, layout: Layout) -> str:
    if layout.question:
        return "\n".join(questions(row, layout))
    try:
        return "\n".join(turn["content"] for turn in arrange_one(row, layout)["prompt"])
    except ValueError:
        return ""
