"""One entry of `extra_datasets`: a data set of a mixture. Reads no data, so that bad settings are reported at once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from grpo_jax.errors import nearest

_TEXTS = ("dataset", "split", "prompt_column", "completion_column", "layout")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set of a mixture."""

    dataset: str
    split: str = "train"
    limit: int = 0
    """The most rows; 0 for all."""
    weight: float = 1.0
    """How many times each row is taken; 0.5 takes half of the rows."""
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    layout: str | None = None


def entry(given: Mapping[str, Any]) -> Entry:
    """The entry for one mapping of `extra_datasets`. Raises ValueError, saying what is wrong with it."""
    names = [field.name for field in fields(Entry)]
    if unknown := next((name for name in given if name not in names), None):
        raise ValueError(
            f"extra_datasets: no {unknown!r}{nearest(str(unknown), names)} in {dict(given)}; "
            f"an entry has {', '.join(names)}"
        )
    if not given.get("dataset"):
        raise ValueError(f"extra_datasets: {dict(given)} names no dataset; write {{dataset: ROWS}}")
    made = Entry(**given)
    if fault := _fault(made):
        raise ValueError(f"extra_datasets: {fault}")
    return made


def _fault(made: Entry) -> str | None:
    for name in _TEXTS:
        value = getattr(made, name)
        if not (isinstance(value, str) and value) and (name, value) != ("layout", None):
            return f"{name} = {value!r}: must be text; write it in quotes, or leave it out"
    if type(made.limit) is not int or made.limit < 0:
        return f"limit = {made.limit!r}: must be a whole number, 0 for all rows"
    if type(made.weight) not in (int, float) or not 0 < made.weight <= 1000:
        return f"weight = {made.weight!r}: must be a number above 0, 1000 at most"
    return None
