"""The outcome of curation: every row of a data set is kept, or dropped with a reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A dropped row."""

    row: int
    """Its number in the data set, from 1."""
    reason: str
    """A keyword, the same for all rows with this fault."""
    found: str
    """What was found in this row."""
    columns: Row
    """The original row."""

    def written(self) -> Row:
        """The entry for the file of dropped rows."""
        return {"row": self.row, "reason": self.reason, "found": self.found, "columns": self.columns}


@dataclass(frozen=True)
class CurationOutcome:
    """The kept and the dropped rows, in the order of the data set. Raises AssertionError unless they are all rows."""

    read: int
    kept: list[Row]
    dropped: list[Dropped]
    figures: dict[str, Any] = field(default_factory=dict)
    """What the report contains beside the counts."""

    def __post_init__(self) -> None:
        assert self.read == len(self.kept) + len(self.dropped), "a row has vanished"

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> number of dropped rows, the most frequent first."""
        return dict(Counter(row.reason for row in self.dropped).most_common())

    def report(self) -> dict[str, Any]:
        """Counts, reasons and figures, without the rows."""
        counts = {"read": self.read, "kept": len(self.kept), "dropped": len(self.dropped)}
        return {**counts, "reasons": self.reasons, **self.figures}


Fault = tuple[str, str]
"""(reason, what was found)"""


def sieved(
    rows: Sequence[Row],
    faults: Sequence[Fault | None],
    changed: Sequence[Row] | None = None,
    figures: dict[str, Any] | None = None,
) -> CurationOutcome:
    """Drop the rows with a fault, and keep the others, in their version in `changed` if that is given."""
    kept = [row for row, fault in zip(changed or rows, faults, strict=True) if fault is None]
    lost = [
        Dropped(number, *fault, row)
        for number, (row, fault) in enumerate(zip(rows, faults), start=1)
        if fault
    ]
    return CurationOutcome(len(rows), kept, lost, figures or {})
