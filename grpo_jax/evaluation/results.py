"""Result files: a JSON file, and beside it the completions as Parquet, both written atomically."""

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


def files_to_write(described: Mapping[str, Any], output: str | None, run: str | None) -> list[epath.Path]:
    """The JSON files to write: `output`, and one in the folder of the run that `run` names or that exported the model.
    There, results with another N, split or setting get another file name, so that none overwrites another.

    Args:
        described: what is evaluated: model, task, samples, and the settings that the results depend on.

    Raises:
        UserError: a file cannot be written, or there is no run.
    """
    if output is not None and output.endswith(".parquet"):
        raise UserError(
            f"output = {output}: the completions go there; name the JSON file, {output[:-8]}.json"
        )
    folder = _run_of(run, described["model"])
    files = [] if output is None else [epath.Path(output)]
    if folder is not None:
        files.append(_free_file(epath.Path(folder) / "evaluations", described))
    for file in files:
        check_writable(file)
    return files


def write(file: epath.PathLike, results: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> None:
    """Write the completions of each mode's evaluation, then `results` as JSON, whose presence shows that both are
    complete."""
    file = epath.Path(file)
    write_atomically(file.with_suffix(".parquet"), samples_bytes(evaluations))
    write_atomically(file, json.dumps(results, indent=2) + "\n")


def keep_step(run: RunFolder, step: int, result: Evaluation) -> None:
    """Write the evaluation after `step` steps into the run's folder."""
    if run.is_writer:
        figures = {"step": step, "samples": result.rewards.shape[1], **result.summary()}
        write(run.path / "evaluations" / f"step_{step:05d}.json", figures, {"held_out": result})


def samples_bytes(evaluations: Mapping[str, Evaluation]) -> bytes:
    """A Parquet file with a row for each completion: its mode in the column `way` (greedy, sampled or held_out), `set`
    if there are several evaluation sets, `row` in the data, `sample`, `prompt` and `completion`; the value of each
    reward and the columns that it logged (`strict/answer`, `strict/vote`); `length` in tokens, and whether it is
    `truncated`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pa.table(_columns(mode, result)) for mode, result in evaluations.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), buffer)
    return buffer.getvalue()


def _columns(mode: str, result: Evaluation) -> dict[str, Any]:
    import pyarrow as pa

    P, N, _ = result.values.shape
    columns = {
        "way": pa.array([mode] * (P * N), pa.string()),
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


def _free_file(folder: epath.Path, described: Mapping[str, Any]) -> epath.Path:
    """TASK_nN.json, or TASK_nN_2.json, ...: the first that does not exist or holds results of the same evaluation."""
    stem = f"{_file_name(described['task'])}_n{described['samples']}"
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    files = (folder / f"{name}.json" for name in names)
    return next(file for file in files if not file.exists() or _holds(file, described))


def _holds(file: epath.Path, described: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(file.read_text())
        return all(found.get(name) == value for name, value in described.items())
    except (OSError, ValueError, AttributeError):
        return False  # not results of eval: keep the file


def _repeated(texts: Sequence[str], N: int) -> list[str]:
    return [text for text in texts for _ in range(N)]


def _run_of(run: str | None, model: str) -> Path | epath.Path | None:
    """The run's folder: `run`, or the parent of `model` if that is a run's export, its folder `hf`; else None."""
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


def _file_name(name: str) -> str:
    """A file name for a task, which may itself be a path."""
    return re.sub(r"[^\w.+-]+", "_", Path(name).stem if name.endswith((".yaml", ".yml")) else name).strip("_")
