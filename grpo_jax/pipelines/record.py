"""`pipeline.json`: which stages of a pipeline are finished, with their settings, inputs, outputs and times."""

import hashlib
import json
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.pipelines.stages import Pipeline, Stage
from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.folder import MAY_DIFFER

_SHOWN = 3  # differing settings named in one error


class Record:
    """What is known of the stages of a pipeline's folder. UserError where the folder holds another pipeline."""

    def __init__(self, pipeline: Pipeline):
        self.file = Path(pipeline.output_dir) / "pipeline.json"
        self.stages: dict[str, dict[str, Any]] = self._read()
        _check_same_stages(self.file, self.stages, pipeline)
        for stage in pipeline.stages:
            if stage.name in self.stages:
                _check_same(self.stages[stage.name], stage, self.file)

    def state(self, stage: Stage) -> str:
        """`finished`, `begun` or `to do`."""
        if stage.name in self.stages:
            return "finished"
        return "begun" if Path(stage.folder).exists() else "to do"

    def add(self, stage: Stage, started: str, seconds: float, result: str, *, write: bool) -> None:
        """Note that a stage is finished; `write`: this process is the one that writes."""
        self.stages[stage.name] = {
            "number": stage.number,
            "verb": stage.verb,
            "settings_digest": _digest(stage.record),
            "settings": stage.record,
            "inputs": stage.reads,
            "outputs": {name: Path(path).name for name, path in stage.outputs.items()},
            "started": started,
            "seconds": round(seconds, 3),
            "result": result,
        }
        if write:
            write_atomically(self.file, json.dumps({"stages": self.stages}, indent=2) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        try:
            found = dict(json.loads(self.file.read_text(encoding="utf-8"))["stages"])
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise UserError(f"{self.file}: not readable ({fault}); give another output_dir") from None
        for name, entry in found.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict):
                raise UserError(
                    f"{self.file}: not readable (stage {name} has no settings); give another output_dir"
                )
        return found


def _check_same_stages(file: Path, there: dict[str, Any], pipeline: Pipeline) -> None:
    numbers = {stage.name: stage.number for stage in pipeline.stages}
    for name, entry in there.items():
        if numbers.get(name) != entry.get("number"):
            here = f"is number {numbers[name]}" if name in numbers else "is not there"
            raise UserError(
                f"{file}: stage {name} is finished as number {entry.get('number')}, and {here} in {pipeline.name}; "
                "give another output_dir, or the stages of that pipeline"
            )


def _check_same(entry: dict[str, Any], stage: Stage, file: Path) -> None:
    """A finished stage has the settings and the outputs that it is said to have."""
    there, here = entry.get("settings", {}), stage.record
    names = [
        name for name in {**there, **here} if name not in MAY_DIFFER and there.get(name) != here.get(name)
    ]
    if names or entry.get("verb") != stage.verb:
        shown = "; ".join(f"{n} is {there.get(n)!r} there and {here.get(n)!r} here" for n in names[:_SHOWN])
        more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        verb = "" if entry.get("verb") == stage.verb else f"verb is {entry.get('verb')} there; "
        raise UserError(
            f"stage {stage.name}: finished with other settings: {verb}{shown}{more}. "
            "Give another output_dir, or the same settings to go on"
        )
    if lost := next((path for path in stage.outputs.values() if not Path(path).exists()), None):
        raise UserError(
            f"stage {stage.name}: finished, but {lost} is gone; bring it back, or remove {stage.name} from {file} "
            f"and {stage.folder} to run it again"
        )


def _digest(settings: dict[str, Any]) -> str:
    """SHA-256 of what a result depends on."""
    text = json.dumps(
        {name: value for name, value in settings.items() if name not in MAY_DIFFER}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()
