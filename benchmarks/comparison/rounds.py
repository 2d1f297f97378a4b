"""One workload through all systems: by turns, one measurement at a time."""

import argparse
import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from comparison import figures, work
from comparison.environments import SYSTEMS, EnvironmentFailed, python_of
from comparison.workers import Worker, WorkerFailed

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Entry:
    """A line of a workload's table: a system, and how it is set for it."""

    system: str
    variant: dict[str, Any] = field(default_factory=dict)
    note: str = ""


TO_THE_LONGEST = "computes every row until the longest ends; useful tokens counted"
PEERS = {"trl": Entry("trl"), "tunix": Entry("tunix")}
ENTRIES = {
    "equal": {"ours": Entry("ours"), **PEERS},
    "skewed": {
        "ours": Entry("ours"),
        "ours, compaction off": Entry("ours", {"segment": 0}),
        "trl": Entry("trl", note=TO_THE_LONGEST),
        "tunix": Entry("tunix", note=TO_THE_LONGEST + "; it has no end for a row but a token"),
    },
    "shared_prompt": {
        "ours": Entry("ours"),
        "ours, prompts repeated": Entry("ours", {"repeat_prompts": True}),
        **PEERS,
    },
}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all systems are told alike."""
    return {
        "micro_batch_size": args.micro_batch_size,
        "beta": 0.04,
        "learning_rate": 1e-6,
        "gradient_checkpointing": args.gradient_checkpointing,
    }


class Comparison:
    """One workload: its workers, and what they have answered so far."""

    def __init__(self, name: str, args: argparse.Namespace, model: Path, scratch: Path):
        self.name, self.args, self.model, self.scratch = name, args, model, scratch / name
        self.scratch.mkdir()
        self.work = work.WORKLOADS[name]
        self.measures = args.measures or self.work.measures
        self.entries = {n: e for n, e in ENTRIES[name].items() if e.system in args.systems}
        self.rows = self.scratch / "rows.npz"
        work.make_rows(self.rows, self.work, args.config.vocab_size)
        self.workers: dict[str, Worker] = {}
        self.errors: dict[tuple[str, str], str] = {}  # by entry and measure
        self.failed: dict[str, str] = {}  # entries that never came up
        self.answers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.loads: list[float] = []

    def run(self) -> dict[str, Any]:
        """All rounds; whatever fails costs its own row only."""
        try:
            for name, entry in self.entries.items():
                self._start(name, entry)
            agreement = self._agreement()
            for turn in range(self.args.rounds + 1):  # the first compiles
                self._round(count=turn > 0)
        finally:
            for worker in self.workers.values():
                worker.close()
        return {
            "work": work.as_json(self.work),
            "load": self.loads,
            "same_model": agreement,
            **self._result(),
        }

    def _start(self, name: str, entry: Entry) -> None:
        self._say(f"{name} starts")
        folder = self.scratch / name.replace(", ", "_").replace(" ", "_")
        folder.mkdir()
        logs = self.args.environments / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{self.name}_{folder.name}.txt"
        spec = {
            "model": str(self.model),
            "rows": str(self.rows),
            "scratch": str(folder),
            "work": work.as_json(self.work),
            "variant": entry.variant,
            "settings": settings(self.args),
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        try:
            python = python_of(entry.system, self.args.environments.resolve())
            command = [str(python), str(SYSTEMS[entry.system].worker), str(folder / "spec.json")]
            environment = _environment(entry.system)
            self.workers[name] = Worker(command, log, environment, self.args.patience)
        except (EnvironmentFailed, WorkerFailed) as error:
            self._lost(name, str(error))

    def _lost(self, name: str, why: str) -> None:
        self._say(f"{name} failed: {why}")
        self.failed[name] = why

    def _agreement(self) -> dict[str, Any]:
        """Log-probs of the given rows, each system's against the first one's."""
        lengths, found = work.lengths(self.work).reshape(-1, 1), {}
        for name, worker in self.workers.items():
            file = self.scratch / "logprobs.npy"
            try:
                worker.ask("check", file=str(file))
                found[name] = np.load(file)
            except WorkerFailed as error:
                self._say(f"{name}: log-probs failed: {error}")
        return _differences(found, lengths)

    def _round(self, count: bool) -> None:
        if count:
            self.loads.append(round(os.getloadavg()[0], 2))
        for measure in self.measures:
            for name, worker in self.workers.items():
                if (name, measure) not in self.errors:
                    self._measure(name, worker, measure, count)

    def _measure(self, name: str, worker: Worker, measure: str, count: bool) -> None:
        try:
            answer = worker.ask(measure)
            self._check_tokens(measure, answer)
        except WorkerFailed as error:
            self._say(f"{name}: {measure} failed: {error}")
            self.errors[name, measure] = str(error)
            return
        self._say(f"{name}: {measure} {answer['seconds']:.2f} s{'' if count else ' with compilation'}")
        if count:
            self.answers[name, measure].append(answer)

    def _check_tokens(self, measure: str, answer: dict[str, Any]) -> None:
        """What was sampled must be what was asked for, or the seconds mean nothing."""
        wanted = work.tokens(self.work, measure)
        if answer["tokens"] is not None and answer["tokens"] != wanted:
            raise WorkerFailed(f"{answer['tokens']} tokens instead of {wanted}")

    def _result(self) -> dict[str, Any]:
        rows = {name: self._row(name, entry) for name, entry in self.entries.items()}
        return {"systems": figures.with_ratios(rows)}

    def _row(self, name: str, entry: Entry) -> dict[str, Any]:
        if name in self.failed:
            return {"error": self.failed[name]}
        measures = {measure: self._figure(name, measure) for measure in self.measures}
        every = [answer for measure in self.measures for answer in self.answers[name, measure]]
        peak = max((answer["process_peak_bytes"] for answer in every), default=0)
        facts = self.workers[name].facts
        return {**facts, "note": entry.note, "process_peak_bytes": peak, "measures": measures}

    def _figure(self, name: str, measure: str) -> dict[str, Any]:
        if (name, measure) in self.errors:
            return {"error": self.errors[name, measure]}
        return figures.summary(self.answers[name, measure], work.tokens(self.work, measure))

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _environment(system: str) -> dict[str, str]:
    """The processor alone, and no hub: everything lies in folders. This project comes from this checkout."""
    changed = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | changed | ({"PYTHONPATH": str(ROOT)} if system == "ours" else {})


def _differences(found: dict[str, np.ndarray], lengths: np.ndarray) -> dict[str, Any]:
    """How far log-probs [B,Tc] are apart where there are tokens."""
    if not found:
        return {}
    first, *_ = found
    mask = np.arange(found[first].shape[1]) < lengths
    apart = {name: float(np.abs(x - found[first])[mask].max()) for name, x in found.items()}
    return {
        "log_probs_against": first,
        "spread_of_log_probs": float(found[first][mask].std()),
        "largest_difference": apart,
        "agree": max(apart.values()) < figures.NEAR,
    }
