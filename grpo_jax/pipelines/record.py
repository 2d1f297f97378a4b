"""`pipeline.json`: the finished steps of a pipeline, with their settings, inputs, outputs and times."""

import hashlib
import json
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.pipelines.steps import Pipeline, Step
from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.folder import MAY_DIFFER

_SHOWN = 3  # the most differing settings named in one error


class Record:
    """The finished steps in a pipeline's folder.

    Raises:
        UserError: the folder holds another pipeline, or one with other settings.
    """

    def __init__(self, pipeline: Pipeline):
        self.file = Path(pipeline.output_dir) / "pipeline.json"
        self.steps: dict[str, dict[str, Any]] = self._read()
        _check_same_steps(self.file, self.steps, pipeline)
        for step in pipeline.steps:
            if step.name in self.steps:
                _check_same(self.steps[step.name], step, self.file)

    def state(self, step: Step) -> str:
        """`finished`, `begun` or `to do`."""
        if step.name in self.steps:
            return "finished"
        return "begun" if Path(step.folder).exists() else "to do"

    def add(self, step: Step, started: str, seconds: float, result: str, *, write: bool) -> None:
        """Record that a step is finished. Only the process with `write` writes the file."""
        self.steps[step.name] = {
            "number": step.number,
            "verb": step.verb,
            "settings_digest": _digest(step.record),
            "settings": step.record,
            "inputs": step.reads,
            "outputs": {name: Path(path).name for name, path in step.outputs.items()},
            "started": started,
            "seconds": round(seconds, 3),
            "result": result,
        }
        if write:
            write_atomically(self.file, json.dumps({"stages": self.steps}, indent=2) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        try:
            entries = dict(json.loads(self.file.read_text(encoding="utf-8"))["stages"])
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise UserError(f"{self.file}: not readable ({fault}); give another output_dir") from None
        for name, entry in entries.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict):
                raise UserError(
                    f"{self.file}: not readable (step {name} has no settings); give another output_dir"
                )
        return entries


def _check_same_steps(file: Path, entries: dict[str, Any], pipeline: Pipeline) -> None:
    numbers = {step.name: step.number for step in pipeline.steps}
    for name, entry in entries.items():
        if numbers.get(name) != entry.get("number"):
            now = f"is number {numbers[name]}" if name in numbers else "is not there"
            raise UserError(
                f"{file}: step {name} is finished as number {entry.get('number')}, and {now} in {pipeline.name}; "
                "give another output_dir, or the steps of that pipeline"
            )


def _check_same(entry: dict[str, Any], step: Step, file: Path) -> None:
    """Raise UserError unless a finished step has the recorded settings, and its outputs still exist."""
    recorded, given = entry.get("settings", {}), step.record
    names = [
        name
        for name in {**recorded, **given}
        if name not in MAY_DIFFER and recorded.get(name) != given.get(name)
    ]
    if names or entry.get("verb") != step.verb:
        shown = "; ".join(
            f"{n} is {recorded.get(n)!r} there and {given.get(n)!r} here" for n in names[:_SHOWN]
        )
        more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        verb = "" if entry.get("verb") == step.verb else f"verb is {entry.get('verb')} there; "
        raise UserError(
            f"step {step.name}: finished with other settings: {verb}{shown}{more}. "
            "Give another output_dir, or the same settings to go on"
        )
    if lost := next((path for path in step.outputs.values() if not Path(path).exists()), None):
        raise UserError(
            f"step {step.name}: finished, but {lost} is gone; bring it back, or remove {step.name} from {file} "
            f"and {step.folder} to run it again"
        )


def _digest(settings: dict[str, Any]) -> str:
    """SHA-256 of the settings on which a result depends."""
    text = json.dumps(
        {name: value for name, value in settings.items() if name not in MAY_DIFFER}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()
