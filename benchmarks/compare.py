"""The same model, prompts and lengths through this project, TRL and Google Tunix: seconds, tokens/s, peak memory.

    python benchmarks/compare.py                                       # 10M parameters, three rounds, about ... minutes
    python benchmarks/compare.py --model 60m --systems ours trl --workloads equal --output 60m.json

`--model` is 10m or 60m (random weights of that shape) or a folder in Hugging Face format. TRL and Tunix get virtual
environments of their own below `--environments`, built by pip the first time. All run on the processor, in float32.

Workloads: `equal`, 8 prompts of 64 tokens x 8 completions of exactly 128; `skewed`, the same prompts with four
completions of 512 among 64 whose mean is 64; `shared_prompt`, 4 prompts of 512 x 16 completions of 128.

Measures: `rollout` (sampling at temperature 1), `score` (log-probs of given rows), `update` (of given rows: the
reference's log-probs, loss, gradient, clipping, AdamW), `step` (sampling, rewards, advantages and update). Every
system stays alive in a process of its own and is told to do one thing at a time, by turns, so that nothing is
compiled while the clock runs and only one works. A ratio is of one round's two times; the table has its median.

Memory is the process's resident peak during the measure, everything that stays loaded (weights, reference, moments)
included. Equal work: KL to a reference, gradients clipped at 1, entropy computed, gradient checkpointing in all or in
none. The model is checked to be the same: all must give the same log-probs.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from comparison import figures, work
from comparison.environments import SYSTEMS, EnvironmentFailed, python_of
from comparison.workers import Worker, WorkerFailed
from hardware import processor

ROOT = Path(__file__).resolve().parents[1]


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


def main() -> int:
    sys.path.insert(0, str(ROOT))  # this checkout, whichever is installed
    os.environ["JAX_PLATFORMS"] = "cpu"
    from grpo_jax.errors import UserError

    try:
        args = _checked(_arguments())
        with tempfile.TemporaryDirectory() as scratch:
            result = compare(args, Path(scratch))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(figures.table(result["workloads"]), file=sys.stderr)
    written = json.dumps(result, indent=2)
    Path(args.output).write_text(written + "\n") if args.output else print(written)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="10m")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--workloads", nargs="+", default=list(work.WORKLOADS))
    parser.add_argument("--measures", nargs="+", help="default: all of equal, rollout of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--environments", type=Path, default=ROOT / ".cache" / "compare")
    parser.add_argument("--patience", type=float, default=1800, help="seconds for one measurement")
    parser.add_argument("--output", type=Path, help="a file for the JSON; else standard output")
    return parser.parse_args()


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    """UserError, one line, for whatever is wrong, before anything is built."""
    from grpo_jax.errors import UserError, nearest

    for name, options in (("systems", SYSTEMS), ("workloads", work.WORKLOADS), ("measures", work.MEASURES)):
        for value in getattr(args, name) or ():
            if value not in options:
                known = ", ".join(options)
                raise UserError(f"--{name}: '{value}' is not one of {known}{nearest(value, options)}")
    if args.rounds < 1:
        raise UserError(f"--rounds = {args.rounds}: at least 1")
    args.config = _config(args.model)
    return args


def _config(model: str) -> Any:
    """The shape of the model."""
    from shapes import SMALL

    from grpo_jax.errors import UserError
    from grpo_jax.models import hf

    if model in SMALL:
        return SMALL[model]
    if not Path(model).is_dir():
        raise UserError(f"--model: '{model}' is neither {' nor '.join(SMALL)} nor a folder")
    return hf.load_config(model)


def compare(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All workloads, one after the other."""
    begun, model = os.getloadavg(), _model(args, scratch)
    workloads = {name: Comparison(name, args, model, scratch).run() for name in args.workloads}
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "load": {"before": begun, "after": os.getloadavg()},
        "model": args.model,
        "shape": vars(args.config),
        "rounds": args.rounds,
        "settings": _settings(args),
        "workloads": workloads,
    }


def _model(args: argparse.Namespace, scratch: Path) -> Path:
    """The folder of the model; random weights are written to one."""
    from shapes import SMALL

    if args.model not in SMALL:
        return Path(args.model).resolve()
    import jax

    from grpo_jax.models.hf import save_model
    from grpo_jax.models.qwen import init

    save_model(scratch / "model", args.config, init(args.config, jax.random.key(0)), dtype="float32")
    return scratch / "model"


def _settings(args: argparse.Namespace) -> dict[str, Any]:
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
            "settings": _settings(self.args),
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


if __name__ == "__main__":
    sys.exit(main())
