"""The driver's side of the protocol: one process a system, asked for one measurement at a time."""

import json
import subprocess
import threading
from pathlib import Path
from typing import IO, Any


class WorkerFailed(Exception):
    """One line: what the worker said last."""


class Worker:
    """A worker's process. It is ready once it is made."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], patience: float):
        self.log, self.patience, self.late = log, patience, False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
        )
        try:
            self.facts = self._answer()["ready"]
        except WorkerFailed:
            self.close()
            raise

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Have one thing done, and wait for it. WorkerFailed when it goes wrong."""
        pipe: IO[str] = self.process.stdin  # type: ignore[assignment]
        try:
            print(json.dumps({"do": do, **more}), file=pipe, flush=True)
        except BrokenPipeError:
            raise WorkerFailed(self._end()) from None
        return self._answer()

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        pipe: IO[str] = self.process.stdout  # type: ignore[assignment]
        alarm = threading.Timer(self.patience, self._give_up)
        alarm.start()
        line = pipe.readline()
        alarm.cancel()
        if not line:
            raise WorkerFailed(self._end())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _give_up(self) -> None:
        self.late = True
        self.process.kill()

    def _end(self) -> str:
        """Why a process that says nothing more has ended."""
        status = self.process.wait()
        if self.late:
            return f"no answer in {self.patience:g} s"
        said = self.log.read_text(errors="replace").strip().splitlines()
        return said[-1] if said else f"the process ended with status {status}"
