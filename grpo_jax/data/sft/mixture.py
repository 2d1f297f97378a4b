"""Several supervised data sets as one: each with columns, a limit and a weight of its own."""

from collections.abc import Sequence
from typing import Any

from grpo_jax.data.curriculum.epoch_order import epoch_order
from grpo_jax.data.layouts import arrange
from grpo_jax.data.sft.mixture_entry import Entry
from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError, nearest

Row = dict[str, Any]


def joined(
    rows: Sequence[Row],
    columns: tuple[str, str],
    entries: Sequence[Entry],
    seed: int,
    layout: str | None = None,
) -> list[Row]:
    """`rows`, whose prompts and completions stand in `columns` or where their `layout` has them, and those of the
    entries after them, all with the columns `prompt` and `completion`. UserError as `load_rows`, for a missing
    column, or for an entry of which no row is taken."""
    found = _renamed(rows, *columns, layout)
    for number, one in enumerate(entries):
        loaded = load_rows(one.dataset, one.split, seed=seed)
        try:
            more = _renamed(loaded, one.prompt_column, one.completion_column, one.layout)
        except UserError as fault:
            raise UserError(f"extra_datasets, {one.dataset}: {fault}") from None
        picked = chosen(len(more), one.limit, one.weight, seed + number)
        if not picked:
            raise UserError(
                f"extra_datasets, {one.dataset}: weight = {one.weight}: of {len(more)} rows that is none; "
                f"give more than {0.5 / len(more):g}, or leave the data set out"
            )
        found += [more[i] for i in picked]
    return found


def chosen(rows: int, limit: int, weight: float, seed: int) -> list[int]:
    """Which of so many rows are taken, in the data's order: a function of the numbers alone. All of them `weight`
    times, what is left of it drawn; at most `limit`, drawn too."""
    order = epoch_order(seed, 0, rows).tolist()
    times, rest = divmod(round(rows * weight), rows)
    taken = sorted([*range(rows)] * times + order[:rest])
    if not limit or len(taken) <= limit:
        return taken
    return sorted(taken[i] for i in epoch_order(seed, 1, len(taken))[:limit])


def _renamed(rows: Sequence[Row], prompt: str, completion: str, layout: str | None) -> list[Row]:
    arranged = arrange(rows, prompt, layout, completion_column=completion)
    if completion not in arranged[0]:
        raise UserError(
            f"dataset: no column '{completion}'{nearest(completion, arranged[0])} among {', '.join(arranged[0])}; "
            "set completion_column to the one that holds the completions"
        )
    return [{"prompt": row["prompt"], "completion": row.get(completion)} for row in arranged]
