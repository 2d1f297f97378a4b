"""A run as the trainer sees it: restores and saves checkpoints, logs each step, and stops on SIGTERM and Ctrl-C."""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from grpo_jax.errors import UserError
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.files import copy_folder, is_local
from grpo_jax.runs.folder import RunFolder, open_run
from grpo_jax.runs.interrupts import Interrupts
from grpo_jax.runs.loggers import LOGGERS, MetricsLogger, read_metrics
from grpo_jax.runs.progress import TrainingProgress
from grpo_jax.runs.samples import Samples
from grpo_jax.runs.status import current, phase
from grpo_jax.sharding import hosts

TERMINATED = 128 + signal.SIGTERM  # the exit status of a run that saved and stopped when asked to


class SavedState(Protocol):
    """What a run knows besides its weights, in a form that a checkpoint can keep."""

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""


class Run:
    """One process's hold on a run's folder, from opening to closing (use it with `with`).

    Args:
        settings: the whole configuration as plain values; with `output_dir` None nothing is kept: metrics are
            in a temporary folder until the run ends, and there are no checkpoints and no export.
        fingerprint: identifies the starting model, see `model_fingerprint`.
        is_writer: process 0, which writes and prints.
        prepare: writes what else a new run's folder has.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        fingerprint: Mapping[str, str],
        *,
        is_writer: bool = True,
        prepare: Callable[[RunFolder], None] = lambda run: None,
    ):
        self._open = ExitStack()
        path = settings["output_dir"] or self._open.enter_context(tempfile.TemporaryDirectory())
        self.folder: RunFolder = self._open.enter_context(
            open_together(path, settings, fingerprint, is_writer=is_writer, prepare=prepare)
        )
        self.checkpoints: Checkpoints | None = None
        if settings["output_dir"]:
            keep = settings["save_total_limit"]
            self.checkpoints = self._open.enter_context(Checkpoints(self.folder.checkpoints, keep=keep))
        self.samples = Samples(self.folder)
        self.total, self.save_steps = settings["max_steps"], settings["save_steps"]
        self.progress = TrainingProgress(self.total, silent=not is_writer)
        self.loggers: list[MetricsLogger] = self._open_loggers(settings) if is_writer else []
        self.terminated = False
        self.interrupts = Interrupts(
            self.progress.say,
            first=f"interrupted: finishing the step, then {self._kept} and stopping; Ctrl-C again stops now",
        )

    @property
    def _kept(self) -> str:
        return "saving" if self.checkpoints else "saving nothing (output_dir is none)"

    def _open_loggers(self, settings: Mapping[str, Any]) -> list[MetricsLogger]:
        loggers = [*(opened(self.folder, settings) for opened in LOGGERS), self.progress]
        for logger in loggers:
            self._open.callback(logger.close)
        return loggers

    def __enter__(self) -> "Run":
        previous = signal.signal(signal.SIGTERM, self._terminate) if _in_main_thread() else None
        if previous is not None:
            self._open.callback(signal.signal, signal.SIGTERM, previous)
        return self

    def __exit__(self, *fault: Any) -> None:
        self._open.__exit__(*fault)

    def _terminate(self, *_: Any) -> None:
        """Remember that SIGTERM came: the run finishes and saves the current step, and then exits."""
        self.terminated = True

    def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(steps done, train state, the run state as JSON values) of the newest intact checkpoint; None without one.

        Metrics and samples of later steps are dropped: those steps run again.
        """
        with phase("restoring the newest checkpoint"):
            found = self.checkpoints.restore(abstract) if self.checkpoints else None
        self.samples.truncate(found[2].get("samples", {}) if found else {})
        for logger in self.loggers:
            logger.start(found[0] if found else 0)
        return found

    def restore_step(self, step: int, abstract: Any) -> Any:
        """The train state of one checkpoint."""
        assert self.checkpoints is not None, "a run without output_dir has no checkpoints"
        self._wait_for_save()
        with phase(f"restoring the checkpoint of step {step}"):
            found = self.checkpoints.restore(abstract, step)
        assert found is not None
        return found[1]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell every logger the metrics of a step, which counts from 1."""
        for logger in self.loggers:
            logger.log(step, metrics)

    def logged(self) -> list[dict[str, Any]]:
        """The metrics of the steps so far, as `metrics.jsonl` has them."""
        return read_metrics(self.folder)

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps: by `save_steps`, and after the last."""
        return done == self.total or (self.save_steps > 0 and done % self.save_steps == 0)

    def save(self, done: int, state: Any, run_state: dict[str, Any]) -> None:
        """Save in the background; `state` may be donated, and `run_state` changed, at once."""
        if self.checkpoints:
            with phase("saving a checkpoint"):
                self.checkpoints.save(done, state, run_state)

    def end_step(
        self, done: int, state: Any, run_state: SavedState, *, wanted: bool = False, spare: int | None = None
    ) -> bool:
        """Save if a checkpoint is due or `wanted`, or if any process received SIGTERM or Ctrl-C; then, for these, raise
        SystemExit(143) or KeyboardInterrupt.

        The checkpoint of step `spare` is kept beside the newest. Returns whether it saved; without an `output_dir` it
        never does.
        """
        if self.checkpoints:
            self.checkpoints.spared = spare
        asked = hosts.sum_over_processes([self.terminated, self.interrupts.asked])
        terminated, interrupted = map(bool, asked)
        saves = terminated or interrupted or wanted or self.is_due(done)
        if saves:
            self.save(done, state, run_state.to_json())
        if interrupted:
            self._wait_for_save()
            self._say_interrupted(done)
            raise KeyboardInterrupt
        if terminated and done < self.total:
            self._wait_for_save()
            raise SystemExit(TERMINATED)
        return saves and self.checkpoints is not None

    def _say_interrupted(self, done: int) -> None:
        saved = f"saved in {self.folder.path}: the same command goes on from there"
        self.progress.say(
            f"step {done} of {self.total} is done{', and ' + saved if self.checkpoints else ''}"
        )

    def _wait_for_save(self) -> None:
        if self.checkpoints:
            with phase("saving a checkpoint"):
                self.checkpoints.wait()

    def export(self, write: Callable[[Path], None], name: str = "hf", config: str = "config.json") -> None:
        """Have `write` make the folder `name`, unless it is there. Collective: `write` gathers from every process.

        A bucket gets copies of the files; `config` is copied last, so a folder that has it is complete."""
        target = self.folder.path / name
        done = self.folder.is_writer and (target / config).exists()
        if self.checkpoints is None or hosts.any_process(done):
            return
        self._wait_for_save()  # a failed export costs no training step
        if is_local(target):
            write(Path(target))
            return
        with tempfile.TemporaryDirectory() as here:
            made = Path(here) / name
            write(made)
            if self.folder.is_writer:
                with phase(f"copying to {target}"):
                    copy_folder(made, target, last=config)

    def end_progress(self) -> None:
        """Take the bar off the terminal, for what is printed at the end."""
        self.progress.close()


def open_together(
    *given: Any, is_writer: bool, prepare: Callable[[RunFolder], None] = lambda run: None
) -> RunFolder:
    """`open_run` on every process: the writer first, so that the others do not read a half-made folder. If one
    process refuses, all do; otherwise the others would wait for it forever."""
    folder, fault = None, None
    for turn in (True, False):
        if turn is is_writer:
            try:
                folder = open_run(*given, is_writer=is_writer, prepare=prepare)
            except UserError as caught:
                fault = caught
        if hosts.any_process(fault is not None):
            raise fault or UserError("output_dir: another process cannot use it; see what that one says")
    assert folder is not None
    return folder


class Stopwatch:
    """Seconds of each phase of a step, as metrics `time/{phase}`; a phase that runs twice is summed. The phases are
    also those of the process's status."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with current().phase(phase):
            yield
        before = self.times.get(f"time/{phase}", 0.0)
        self.times[f"time/{phase}"] = before + time.perf_counter() - start

    def total(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self.start


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
