"""docs/data.md agrees with the registry of layouts, the reasons and the settings."""

import pathlib
import re

from grpo_jax.config.data import VERBS
from grpo_jax.data.curation.cleaning import REASONS
from grpo_jax.data.layouts import LAYOUTS

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def cells(header):
    """The cells of each row of the table that begins so."""
    _, _, rest = TEXT.partition(f"| {header} |")
    body = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in body]


def test_the_table_of_layouts_agrees_with_the_registry():
    rows = cells("layout")
    assert [row[0] for row in rows] == [f"`{layout.name}`" for layout in LAYOUTS]
    for row, layout in zip(rows, LAYOUTS):
        assert row[1] == layout.sets
        named = (
            set(re.findall(r"`(\w+)`", row[2])) - {"level"} - ({"answer"} if layout.name == "math" else set())
        )
        assert named - {"system"} == layout.columns - {"system"}, layout.name
        assert bool(layout.trace) == (row[5] != "none"), f"{layout.name}: a completion"


def test_the_table_of_reasons_is_complete():
    assert {name for row in cells("reason") for name in re.findall(r"`(\w+)`", row[0])} == set(REASONS)


def test_every_data_verb_and_only_existing_settings_are_named():
    fields = {name for _, cls in VERBS.values() for name in cls.model_fields}
    fields |= {"dataset", "completion_column"}
    assert [verb for verb in VERBS if f"### {verb}\n" not in TEXT] == []
    assert set(re.findall(r"--(\w+)", TEXT)) - fields == set()
