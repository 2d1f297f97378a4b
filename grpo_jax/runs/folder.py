"""A run's folder: which run it holds, which process may write to it, and whether the run may be resumed.

    config.yaml  tokenizer/  metrics.jsonl  completions/  checkpoints/<step>/  summary.json  hf/  report.html
    completion_samples.txt  success_completion_samples.txt

The same settings on the same folder resume; anything else is refused before a file is touched. `config.yaml`
is written last, so a folder that has one holds a run, and a start that was killed earlier can be
repeated.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import IO, Any

import yaml
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.runs.files import is_local, write_atomically
from grpo_jax.runs.lock import take_lock

MAY_DIFFER = frozenset(
    {
        "output_dir",  # a run that was moved is the same run
        "save_steps",  # what is kept and written, never what is computed
        "save_total_limit",
        "log_completions_steps",
        "completion_samples",
        "success_samples",
        "compilation_cache",
        "quiet",
        "reward_workers",  # how fast rewards come, not what they are
        "mesh",  # the same sums on other devices: equal up to the rounding of their order
        "micro_batch_size",  # and these, so that a run that is out of memory can go on in less
        "auto_micro_batch",
        "logprob_chunk",
        "gradient_checkpointing",
        "skip_zero_advantages",
        "share_prompts",
        "length_buckets",
        "reference_memory",
        "reflection",  # reads the run, does not change it
        "attention",  # another kernel: equal up to rounding, too
        "rollout_segment",  # these decide which rows are sampled together, not which tokens
        "rollout_memory",
    }
)
"""Settings that may change when a run is resumed, because the result does not depend on them."""

BEFORE: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "optim": "adamw",
    "lora_dropout": 0.0,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
}
"""Settings that earlier versions did not have -> the value that does what they did. Not listed where that is None."""

# start: the demo's model
_OURS_BEFORE_START = frozenset({".lock", "run.json", "start", ".start.partial", "tokenizer"})
_SHOWN = 3  # differing settings named in one error


class RunFolder:
    """The paths of a run; `path` is a local folder or a bucket. Only a writer (process 0) writes there."""

    def __init__(self, path: epath.PathLike, *, is_writer: bool = True):
        self.path = epath.Path(path)
        self.is_writer = is_writer
        self.config_file = self.path / "config.yaml"
        self.run_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.hf = self.path / "hf"
        self.tokenizer = self.path / "tokenizer"
        self._lock: IO[str] | None = None

    def completions_file(self, step: int) -> epath.Path:
        return self.path / "completions" / f"completions_{step:05d}.parquet"

    def settings(self) -> dict[str, Any]:
        """The configuration that this run was started with. UserError when the folder holds no run."""
        if not _exists(self.config_file):
            raise UserError(f"{self.path}: no run here (no config.yaml); give the output_dir of a run")
        try:
            found = yaml.safe_load(self.config_file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as fault:
            raise UserError(f"{self.config_file}: not readable as YAML: {_first_line(fault)}") from fault
        if not isinstance(found, dict):
            raise UserError(f"{self.config_file}: holds no settings; give another output_dir")
        return found

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, the numbers of the closing table."""
        if self.is_writer:
            write_atomically(self.summary_file, json.dumps(dict(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The closing summary, or None when the run has not ended yet."""
        return json.loads(self.summary_file.read_text()) if self.summary_file.exists() else None

    def lock(self) -> None:
        """Keep other processes out until `close`, or until this process ends in any way (local disks only)."""
        if self._lock is None and is_local(self.path):
            self._lock = take_lock(self.path)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(
    path: epath.PathLike,
    settings: Mapping[str, Any],
    fingerprint: Mapping[str, str],
    *,
    is_writer: bool = True,
    prepare: Callable[[RunFolder], None] = lambda run: None,
) -> RunFolder:
    """Start a run at `path`, or open the one that is there in order to resume it.

    Args:
        settings: the whole resolved configuration, as plain YAML values.
        fingerprint: `model_fingerprint` of the starting model.
        is_writer: process 0 of the run; the others only check.
        prepare: writes what else a new run's folder has, before the folder counts as that of a run.
    Raises:
        UserError: the folder holds something else, or a run with other settings or another model, or is in use.
            In all these cases nothing in it has been changed.
    """
    run = RunFolder(path, is_writer=is_writer)
    plain = yaml.safe_load(yaml.safe_dump(dict(settings)))  # tuples become the lists that a file gives back
    _check(run, plain, fingerprint)
    if is_writer:
        run.lock()
        # Checked again: another process may have started a run here before we had the lock.
        if not _check(run, plain, fingerprint):
            prepare(run)
            _start(run, plain, fingerprint)
    return run


def check_place(path: epath.PathLike, settings: Mapping[str, Any]) -> bool:
    """Whether a run of these settings is at `path`; False for an empty place. UserError for anything else, as
    from `open_run`. For callers that must know before they load a model."""
    return _check(RunFolder(path), dict(settings), None)


def model_fingerprint(config: Mapping[str, Any], params: Any) -> dict[str, str]:
    """Identifies a model: SHA-256 of its configuration, and of its tensors' names and shapes.

    `params` is a pytree of anything that has a shape. Weights are not read: a resumed run has its own.
    """
    from jax.tree_util import keystr, tree_leaves_with_path

    shapes = sorted((keystr(path), list(leaf.shape)) for path, leaf in tree_leaves_with_path(params))
    return {"config": _digest(dict(config)), "tensors": _digest(shapes)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _check(run: RunFolder, settings: dict[str, Any], fingerprint: Mapping[str, str] | None) -> bool:
    """Whether `run` holds a run that may be resumed; False for an empty place; UserError for anything else."""
    if not _exists(run.config_file):
        _check_empty(run.path)
        return False
    _check_same_settings(run, settings)
    if fingerprint is not None:
        _check_same_model(run, fingerprint)
    return True


def _check_empty(path: epath.Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir: {path} is a file; give a folder")
    present = (entry.name for entry in path.iterdir()) if path.exists() else ()
    others = sorted(name for name in present if name not in _OURS_BEFORE_START and not name.endswith(".tmp"))
    if others:
        raise UserError(
            f"output_dir: output folder in use: {path} is not empty and holds no run (it has {others[0]}); "
            "give another output_dir"
        )


def _check_same_settings(run: RunFolder, settings: dict[str, Any]) -> None:
    there = {name: value for name, value in BEFORE.items() if name in settings} | run.settings()
    names = [name for name in {**settings, **there} if name not in MAY_DIFFER]
    given = lambda values, name: _ABSENT if values.get(name) is None else values[name]
    changed = [name for name in names if given(settings, name) != given(there, name)]
    if changed:
        shown = "; ".join(
            f"{name} is {there.get(name, _ABSENT)!r} there and {settings.get(name, _ABSENT)!r} here"
            for name in changed[:_SHOWN]
        )
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise UserError(
            f"output_dir: {run.path} holds a run with other settings: {shown}{more}. "
            "Give another output_dir, or the same settings to resume"
        )


def _check_same_model(run: RunFolder, fingerprint: Mapping[str, str]) -> None:
    try:
        there = json.loads(run.run_file.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            f"{run.run_file}: not readable ({_first_line(fault)}); give another output_dir"
        ) from fault
    changed = [part for part in {**there, **fingerprint} if there.get(part) != fingerprint.get(part)]
    if changed:
        other, it = ("other prompts", "data") if changed == ["prompts"] else ("another model", "model")
        raise UserError(
            f"output_dir: {run.path} holds a run of {other} (its {' and '.join(changed)} differ). "
            f"Give another output_dir, or the {it} that the run was started with"
        )


def _start(run: RunFolder, settings: dict[str, Any], fingerprint: Mapping[str, str]) -> None:
    from grpo_jax import __version__

    identity = {"version": __version__, "fingerprint": dict(fingerprint)}
    write_atomically(run.run_file, json.dumps(identity, indent=2) + "\n")
    write_atomically(run.config_file, yaml.safe_dump(settings, sort_keys=False))


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _exists(file: epath.Path) -> bool:
    """`file.exists()`; UserError when the output folder cannot be reached or read. The first access to it."""
    try:
        return file.exists()
    except (ImportError, ValueError) as fault:  # a bucket without the package that reaches it
        raise UserError(f"output_dir: {file.parent} cannot be reached: {_first_line(fault)}") from fault
    except PermissionError as fault:
        raise UserError(f"output_dir: {file.parent} may not be read; give another output_dir") from fault


def _first_line(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]
