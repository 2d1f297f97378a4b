"""Completions of a logged step as a Parquet file: TRL's columns, and the tokens that were trained."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.folder import RunFolder

if TYPE_CHECKING:
    import pyarrow

_FIXED = ("step", "prompt", "completion", "advantage", "token_ids", "logprobs", "length", "truncated")


def write_completions(
    run: RunFolder,
    step: int,
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    rewards: Mapping[str, ArrayLike],
    advantages: ArrayLike,
    token_ids: ArrayLike,
    logprobs: ArrayLike,
    lengths: ArrayLike,
    action_mask: ArrayLike,
    finished: ArrayLike,
    extras: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write `completions/completions_<step>.parquet`, a row for each of the B completions, atomically.

    Args:
        prompts, completions: texts, B each.
        rewards: reward name -> float [B]; NaN (does not apply) becomes null. A name that another column has
            is written as `reward/<name>`.
        advantages: float [B].
        token_ids, logprobs: int [B, Tc] and float [B, Tc], right-padded; cut to `lengths`, int [B].
        finished: bool [B]; the column `truncated` is its opposite.
        extras: column -> B values that reward functions logged, JSON values; a name that is taken gets `extra/`
            before it, and values of mixed kinds are written as JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not run.is_writer:
        return
    lengths = np.asarray(lengths)
    columns = {
        "step": pa.array([step] * len(prompts), pa.int32()),
        "prompt": pa.array(prompts, pa.string()),
        "completion": pa.array(completions, pa.string()),
        **{_column(name): pa.array(_floats(values), from_pandas=True) for name, values in rewards.items()},
        "advantage": pa.array(_floats(advantages), from_pandas=True),
        "token_ids": _ragged(token_ids, lengths, pa.int32()),
        "logprobs": _ragged(logprobs, lengths, pa.float32()),
        "action_mask": _ragged(action_mask, lengths, pa.bool_()),
        "length": pa.array(lengths, pa.int32()),
        "truncated": pa.array(~np.asarray(finished, bool)),
    }
    for name, values in (extras or {}).items():
        columns[f"extra/{name}" if name in columns else name] = free_column(values)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_atomically(run.completions_file(step), buffer.getvalue())


def _column(reward: str) -> str:
    return f"reward/{reward}" if reward in _FIXED else reward


def free_column(values: Sequence[Any]) -> "pyarrow.Array":
    """A column of JSON values that a reward function logged."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _floats(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, np.float64)


def _ragged(rows: ArrayLike, lengths: np.ndarray, kind: "pyarrow.DataType") -> Any:
    """[B, Tc] cut to `lengths` as a column of lists."""
    import pyarrow as pa

    rows = np.asarray(rows)
    real = np.arange(rows.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rows[real], kind))
