"""Mixtures: entries that are not valid, or would add no row, are refused."""

import json

import pytest

from grpo_jax.data.sft.mixture import joined
from grpo_jax.data.sft.mixture_entry import entry
from grpo_jax.errors import UserError


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": 5},
        {"dataset": ["a"]},
        {"split": 7},
        {"split": ["a"]},
        {"split": None},
        {"split": ""},
        {"prompt_column": 3},
        {"completion_column": {}},
        {"layout": 7},
    ],
)
def test_a_name_that_is_not_text_is_refused(given):
    ((name, said),) = given.items()
    with pytest.raises(ValueError, match="extra_datasets: ") as caught:
        entry({"dataset": "rows.jsonl"} | given)
    assert f"{name} = {said!r}: must be text; write it in quotes, or leave it out" in str(caught.value)


def test_a_valid_entry_is_accepted():
    assert entry({"dataset": "a", "layout": None, "weight": 2}).layout is None
    assert entry({"dataset": "a", "layout": "limo", "weight": 0.5}).layout == "limo"
    with pytest.raises(ValueError, match="weight = True: must be a number"):
        entry({"dataset": "a", "weight": True})


def test_an_entry_whose_weight_leaves_no_row_is_refused(tmp_path):
    row, file = {"prompt": "a", "completion": "b"}, tmp_path / "one.jsonl"
    file.write_text(json.dumps(row))
    join = lambda weight: joined([row], ("prompt", "completion"), [entry({"dataset": str(file)} | weight)], 0)
    with pytest.raises(
        UserError, match=r"one\.jsonl: weight = 0\.5: of 1 rows that is none; give more than 0\.5"
    ):
        join({"weight": 0.5})
    assert join({"weight": 0.6}) == join({}) == [row, row]
