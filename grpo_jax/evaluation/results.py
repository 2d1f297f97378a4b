"""Where results are kept: a JSON file, and beside it the completions as Parquet. Whole files or none."""

import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.evaluation.evaluator import Evaluation
from grpo_jax.runs.completions import free_column
from grpo_jax.runs.files import check_writable, write_atomically
from grpo_jax.runs.folder import RunFolder


def places_of(described: Mapping[str, Any], output: str | None, run: str | None) -> list[epath.Path]:
    """The JSON files to write: `output`, and one in the run's folder that `run` names or that the model is the export
    of. Results of another N, split, or setting have another name there, so that none takes another's place.

    Args:
        described: what the results are of: model, task, samples, and the settings that they depend on.

    Raises:
        UserError: a file cannot be written, or there is no run.
    """
    if output is not None and output.endswith(".parquet"):
        raise UserError(
            f"output = {output}: the completions go there; name the JSON file, {output[:-8]}.json"
        )
    folder = _run_of(run, described["model"])
    kept = [] if folder is None else [_free_place(epath.Path(folder) / "evaluations", described)]
    given = [] if output is None else [epath.Path(output)]
    for place in given + kept:
        check_writable(place)
    return given + kept


def write(place: epath.PathLike, results: Mapping[str, Any], ways: Mapping[str, Evaluation]) -> None:
    """`results` as JSON at `place`, and the completions beside it, which come first: the JSON says that both are
    there."""
    place = epath.Path(place)
    write_atomically(place.with_suffix(".parquet"), samples_bytes(ways))
    write_atomically(place, json.dumps(results, indent=2) + "\n")


def keep_step(run: RunFolder, step: int, result: Evaluation) -> None:
    """What came of the held-out prompts after `step` steps, in the run's folder."""
    if run.is_writer:
        figures = {"step": step, "samples": result.rewards.shape[1], **result.summary()}
        write(run.path / "evaluations" / f"step_{step:05d}.json", figures, {"held_out": result})


def samples_bytes(ways: Mapping[str, Evaluation]) -> bytes:
    """A Parquet file with a row for each completion: `way` (greedy, sampled or held_out), `set` where several are held
    out, `row` in the data, `sample`, `prompt` and `completion`; what each reward gave; what it logged (`strict/answer`,
    `strict/vote`); `length` in tokens, and whether it was `truncated`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pa.table(_columns(way, result)) for way, result in ways.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), buffer)
    return buffer.getvalue()


def _columns(way: str, result: Evaluation) -> dict[str, Any]:
    import pyarrow as pa

    P, N, _ = result.values.shape
    columns = {
        "way": pa.array([way] * (P * N), pa.string()),
        **({"set": pa.array(_repeated(result.sets, N), pa.string())} if any(result.sets) else {}),
        "row": pa.array(np.repeat(result.uids, N).astype(np.int64)),
        "sample": pa.array(np.tile(np.arange(N, dtype=np.int32), P)),
        "prompt": pa.array(_repeated(result.texts, N), pa.string()),
        "completion": pa.array(result.completions, pa.string()),
        "length": pa.array(result.lengths.ravel().astype(np.int32)),
        "truncated": pa.array(~result.finished.ravel()),
    }
    for i, name in enumerate(result.names):
        values = pa.array(result.values[..., i].ravel().astype(np.float64), from_pandas=True)
        columns[f"reward/{name}" if name in columns else name] = values
    for name, values in result.extras.items():
        columns[f"extra/{name}" if name in columns else name] = free_column(values)
    return columns


def _free_place(folder: epath.Path, described: Mapping[str, Any]) -> epath.Path:
    """TASK_nN.json, or TASK_nN_2.json, ...: the first that holds the results of the same, or nothing yet."""
    stem = f"{_plain(described['task'])}_n{described['samples']}"
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    places = (folder / f"{name}.json" for name in names)
    return next(place for place in places if not place.exists() or _is_of(place, described))


def _is_of(place: epath.Path, described: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(place.read_text())
        return all(found.get(name) == value for name, value in described.items())
    except (OSError, ValueError, AttributeError):
        return False  # no results: whatever it is, it stays


def _repeated(texts: Sequence[str], N: int) -> list[str]:
    return [text for text in texts for _ in range(N)]


def _run_of(run: str | None, model: str) -> Path | epath.Path | None:
    """The run's folder. A folder `hf` beside a run's settings is that run's export."""
    if run is not None:
        folder = epath.Path(run)
        if not (folder / "config.yaml").exists():
            raise UserError(
                f"run = {run}: no run there (no config.yaml); give the output_dir of a run, or --output FILE"
            )
        return folder
    folder = epath.Path(model).expanduser().parent
    is_export = epath.Path(model).name in ("hf", "hf/") and (folder / "run.json").exists()
    return folder if is_export else None


def _plain(name: str) -> str:
    """A file's name for a task, which may be a path."""
    return re.sub(r"[^\w.+-]+", "_", Path(name).stem if name.endswith((".yaml", ".yml")) else name).strip("_")
