"""What rows ask, as text, whatever their columns are called."""

from collections.abc import Sequence

from grpo_jax.data.layouts import LAYOUTS, Layout, Row, arrange_one, recognise
from grpo_jax.data.questions import questions
from grpo_jax.errors import UserError


def asked(rows: Sequence[Row], prompt_column: str = "prompt", layout: str | None = None) -> list[str]:
    """Each row's question as text; '' for a row that has none.

    A row in which the layout of the first one finds nothing is read as its own columns say: files are put together of
    several sets. UserError where the first row has no layout.
    """
    first = recognise(rows[0], prompt_column, layout)
    return [_asked(row, first) or _asked_its_own_way(row, prompt_column, layout) for row in rows]


def _asked_its_own_way(row: Row, prompt_column: str, layout: str | None) -> str:
    try:
        own = [recognise(row, prompt_column, layout)]
    except UserError:
        own = []
    # A question alone is enough here; what makes a layout, such as an answer beside it, may be missing or empty.
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
