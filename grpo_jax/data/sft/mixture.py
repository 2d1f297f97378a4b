"""Joins several supervised data sets into one; each has its own columns, limit and weight."""

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
    """`rows` and then the rows of the entries, all with the columns `prompt` and `completion`.

    Args:
        columns: names of the prompt and completion columns of `rows`, unless their `layout` has others.

    Raises:
        UserError: as `load_rows`; a column is missing, or no row of an entry is taken.
    """
    result = _renamed(rows, *columns, layout)
    for number, entry in enumerate(entries):
        loaded = load_rows(entry.dataset, entry.split, seed=seed)
        try:
            more = _renamed(loaded, entry.prompt_column, entry.completion_column, entry.layout)
        except UserError as fault:
            raise UserError(f"extra_datasets, {entry.dataset}: {fault}") from None
        picked = chosen(len(more), entry.limit, entry.weight, seed + number)
        if not picked:
            raise UserError(
                f"extra_datasets, {entry.dataset}: weight = {entry.weight}: of {len(more)} rows that is none; "
                f"give more than {0.5 / len(more):g}, or leave the data set out"
            )
        result += [more[i] for i in picked]
    return result


def chosen(rows: int, limit: int, weight: float, seed: int) -> list[int]:
    """Indices of the rows to take, in the data's order; they depend only on the arguments.

    Every row is taken floor(`weight`) times, and the fraction that remains is drawn. If that is more than `limit` (0:
    no limit), `limit` of them are drawn.
    """
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
