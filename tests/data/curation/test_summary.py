"""The summary of a data set: its columns and lengths."""

from grpo_jax.data.curation.summary import columns, lengths


def test_columns_of_later_rows_are_listed_too():
    rows = [{"a": "x\n y", "b": None}, {"a": "", "b": 3, "c": [1.5]}, {"b": True}]
    found = [(c.name, c.kinds, c.filled, c.example) for c in columns(rows)]
    assert found == [
        ("a", "text", 1, "x y"),
        ("b", "whole number or yes or no", 2, "3"),
        ("c", "list of number", 1, "[1.5]"),
    ]
    assert columns([{"a": "y" * 90}], width=10)[0].example == "y" * 9 + "…"


def test_lists_of_empty_lists_have_a_kind():
    assert [column.kinds for column in columns([{"x": [[]], "y": [[], [1]]}])] == ["list of list"] * 2


def test_lengths_are_summarised_for_one_text_and_for_many():
    assert lengths([7]).longest == lengths([7]).shortest == 7
    found = lengths(range(1, 101))
    assert (found.shortest, found.median, found.most, found.longest) == (1, 51, 96, 100)
