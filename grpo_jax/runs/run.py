"""A run as the trainer sees it: where it resumes, what it writes down, when it must stop."""

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.folder import RunFolder, open_run
from grpo_jax.runs.metrics import Metrics
from grpo_jax.runs.progress import TrainingProgress

TERMINATED = 128 + signal.SIGTERM  # the exit status of a run that saved and stopped when asked to


class Run:
    """One process's hold on a run's folder, from opening to closing (use it with `with`).

    Args:
        settings: the whole configuration as plain values; `output_dir` None keeps the run in a temporary folder.
        fingerprint: of the starting model.
        is_writer: process 0, which writes and prints.
    """

    def __init__(
        self, settings: Mapping[str, Any], fingerprint: Mapping[str, str], *, is_writer: bool = True
    ):
        self._open = ExitStack()
        path = settings["output_dir"] or self._open.enter_context(tempfile.TemporaryDirectory())
        self.folder: RunFolder = self._open.enter_context(
            open_run(path, settings, fingerprint, is_writer=is_writer)
        )
        self.checkpoints = self._open.enter_context(
            Checkpoints(self.folder.checkpoints, keep=settings["save_total_limit"])
        )
        self.metrics = Metrics(self.folder)
        self.total, self.save_steps = settings["max_steps"], settings["save_steps"]
        self.progress: TrainingProgress | None = None
        self.terminated = False

    def __enter__(self) -> "Run":
        previous = signal.signal(signal.SIGTERM, self._terminate) if _in_main_thread() else None
        if previous is not None:
            self._open.callback(signal.signal, signal.SIGTERM, previous)
        return self

    def __exit__(self, *fault: Any) -> None:
        self._open.__exit__(*fault)

    def _terminate(self, *_: Any) -> None:
        """Note that SIGTERM came: the step under way ends, is saved, and then the process."""
        self.terminated = True

    def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(steps done, state, notes) of the newest whole checkpoint; later lines of metrics are forgotten."""
        found = self.checkpoints.restore(abstract)
        self.metrics.truncate(found[0] if found else 0)
        self.progress = self._open.enter_context(
            TrainingProgress(self.total, first=found[0] if found else 0, silent=not self.folder.is_writer)
        )
        return found

    def log(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Write down and show the metrics of the step after which `done` steps are done."""
        self.metrics.log(done, metrics)
        if self.progress is not None:
            self.progress.update(done, metrics)

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps: by `save_steps`, and after the last."""
        return done == self.total or (self.save_steps > 0 and done % self.save_steps == 0)

    def save(self, done: int, state: Any, notes: dict[str, Any]) -> None:
        """Save in the background; `state` may be donated at once."""
        self.checkpoints.save(done, state, notes)

    def end_progress(self) -> None:
        """Take the bar off the terminal, for what is printed at the end."""
        if self.progress is not None:
            self.progress.__exit__()


class Stopwatch:
    """Seconds of each stage of a step, as metrics `time/{stage}`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times[f"time/{stage}"] = time.perf_counter() - start

    def total(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self.start


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
