"""The Parquet file of a logged step, as pandas reads it."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo_jax.runs.completions import write_completions
from grpo_jax.runs.folder import RunFolder

ROWS = {
    "prompts": ["[red] 1+1?", "2+2?"],
    "completions": ["2</s>", "\u2028 no idea"],
    "rewards": {"exact": [1.0, 0.0], "format": [np.nan, 0.5]},
    "advantages": np.array([0.7, -0.7], np.float32),
    "token_ids": np.array([[5, 6, 0, 0], [7, 8, 9, 10]]),
    "logprobs": np.array([[-1, -2, 0, 0], [-3, -4, -5, -6]], np.float32),
    "lengths": np.array([2, 4]),
    "action_mask": np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool),
    "finished": np.array([True, False]),
}


def test_columns_are_those_of_trl_and_ours(tmp_path):
    write_completions(RunFolder(tmp_path), 10, **ROWS)
    table = pq.read_table(tmp_path / "completions" / "completions_00010.parquet")
    assert table.column_names == [
        *("step", "prompt", "completion", "exact", "format", "advantage"),
        *("token_ids", "logprobs", "action_mask", "length", "truncated"),
    ]
    assert table.schema.field("token_ids").type.value_type == "int32"
    assert table.schema.field("logprobs").type.value_type == "float"
    first, second = table.to_pylist()
    assert (first["token_ids"], first["logprobs"], first["truncated"]) == ([5, 6], [-1, -2], False)
    assert (second["token_ids"], second["length"], second["truncated"]) == ([7, 8, 9, 10], 4, True)
    assert second["action_mask"] == [True, False, False, True]
    assert (first["format"], second["format"], first["prompt"]) == (None, 0.5, "[red] 1+1?")


def test_reward_named_like_a_column_does_not_replace_it(tmp_path):
    write_completions(RunFolder(tmp_path), 1, **ROWS | {"rewards": {"length": [0.25, 0.75]}})
    rows = pq.read_table(tmp_path / "completions" / "completions_00001.parquet").to_pylist()
    assert [(row["length"], row["reward/length"]) for row in rows] == [(2, 0.25), (4, 0.75)]


def test_empty_completion_keeps_its_row(tmp_path):
    write_completions(RunFolder(tmp_path), 1, **ROWS | {"lengths": np.array([0, 4])})
    rows = pq.read_table(tmp_path / "completions" / "completions_00001.parquet").to_pylist()
    assert [row["token_ids"] for row in rows] == [[], [7, 8, 9, 10]]


def test_columns_of_unequal_length_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="length"):
        write_completions(RunFolder(tmp_path), 1, **ROWS | {"completions": ["only one"]})
    assert list(tmp_path.iterdir()) == []


def test_process_that_is_not_the_writer_writes_nothing(tmp_path):
    write_completions(RunFolder(tmp_path, is_writer=False), 1, **ROWS)
    assert list(tmp_path.iterdir()) == []
