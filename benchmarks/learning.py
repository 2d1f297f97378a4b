"""Do the small forms learn, and do curricula help? Every run is `grpo-jax train RECIPE --tiny` with the options below
and a seed, on CPU, from the start that `model: demo` makes with that seed.

    pip install matplotlib
    python benchmarks/learning.py --folder runs/learning [--seeds 0 1 2]

writes learning.json and learning_*.png beside this file; exit code 1 where the claim fails: mini-r1 and logic-rl raise
held-out success by 20 points within 10 minutes on each seed. Runs that have ended in the folder are not run again.
Success is the share of 256 held-out prompts, one completion each sampled at temperature 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import jax
from hardware import processor

GAIN, MINUTES = 0.20, 10
CLAIMED = ("mini-r1", "logic-rl")
MEASURED = {"eval_prompts": 256, "eval_steps": 10, "eval_temperature": 1.0}

SUMS = {
    "dataset": "tiny_math:levels=1-3,size=160",
    "eval_dataset": "tiny_math:levels=3",
    "rewards": "boxed_math:think=false",
    "reward_weights": "none",
    "mixture": "none",
    "curriculum": "none",
    "max_steps": 80,
}
"""One domain, of which much is soon solved every time: what history resampling is for."""

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mini-r1": ("mini-r1", {}),
    "logic-rl": ("logic-rl", {}),
    "logic-rl, shuffled": ("logic-rl", {"curriculum": "none"}),
    "sums, uniform": ("srpo", {**SUMS, "history_resampling": False}),
    "sums, history resampling": ("srpo", SUMS),
    "sums, dynamic sampling": ("srpo", {**SUMS, "history_resampling": False, "dynamic_sampling": True}),
}
"""name -> (recipe, what its small form is told besides)."""

_SUMS = [name for name in RUNS if name.startswith("sums")]
PLOTS: dict[str, tuple[str, list[str]]] = {
    "recipes": ("held-out success", ["mini-r1", "logic-rl"]),
    "stages": ("held-out success", ["logic-rl", "logic-rl, shuffled"]),
    "history": ("held-out success", _SUMS),
    "spread": ("groups with spread", _SUMS),
}
"""picture -> (which curve, of which runs)."""


def command_of(name: str, seed: int, folder: Path) -> list[str]:
    """What is typed."""
    recipe, changes = RUNS[name]
    options = {**MEASURED, **changes, "seed": seed, "output_dir": folder}
    typed = [text for what, value in options.items() for text in (f"--{what}", str(value))]
    return [sys.executable, "-m", "grpo_jax", "train", recipe, "--tiny", *typed]


def run(name: str, seed: int, within: Path) -> dict[str, Any]:
    """One run's costs and curves."""
    folder = within / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    cost = within / f"{folder.name}.json"
    if not cost.exists():
        start = time.perf_counter()
        child = subprocess.Popen(command_of(name, seed, folder), stdout=sys.stderr)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{name}, seed {seed}: status {os.waitstatus_to_exitcode(status)}")
        spent = {"seconds": time.perf_counter() - start, "processor_seconds": usage.ru_utime + usage.ru_stime}
        cost.write_text(json.dumps({what: round(seconds, 1) for what, seconds in spent.items()}))
    return {"seed": seed, **json.loads(cost.read_text()), **curves(folder)}


def curves(folder: Path) -> dict[str, Any]:
    """What the run's folder says: success before and after, and [step, value] of each curve."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before, after = summary["before"], summary["after"]
    held_out = {line["step"]: line["eval/success"] for line in lines if "eval/success" in line}
    held_out = {0: before["success"], **held_out, lines[-1]["step"]: after["success"]}
    return {
        "success_before": before["success"],
        "success_after": after["success"],
        "success_stderr": [before["success_stderr"], after["success_stderr"]],
        "held-out success": [list(point) for point in held_out.items()],
        "groups with spread": [[line["step"], 1 - line["frac_reward_zero_std"]] for line in lines],
        "tokens": [[line["step"], line["num_tokens"]] for line in lines],
    }


def draw(name: str, what: str, runs: dict[str, list[dict[str, Any]]], place: Path) -> None:
    """A picture: each seed's curve thin, the mean over seeds thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, (label, seeds) in zip(("C0", "C1", "C2"), runs.items()):
        lines = [np.array(seed[what]) for seed in seeds]
        lines = [_smooth(line) for line in lines] if what == "groups with spread" else lines
        for line in lines:
            axes.plot(*line.T, color=color, alpha=0.35, linewidth=1)
        mean = np.mean([line[:, 1] for line in lines], axis=0)
        axes.plot(
            lines[0][:, 0], mean, color=color, linewidth=2.5, label=f"{label} (mean of {len(lines)} seeds)"
        )
    axes.set(xlabel="step", ylabel=what, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(place / f"learning_{name}.png", dpi=110)
    plt.close(figure)


def _smooth(line: Any, width: int = 10) -> Any:
    """Means of `width` steps each."""
    whole = line[: len(line) // width * width]
    return whole.reshape(-1, width, 2).mean(axis=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = {name: [run(name, seed, given.folder) for seed in given.seeds] for name in given.only}
    if set(found) == set(RUNS):
        keep(found)
    return 0 if all(holds(seed) for name in CLAIMED for seed in found.get(name, ())) else 1


def holds(seed: dict[str, Any]) -> bool:
    """The claim."""
    return seed["success_after"] - seed["success_before"] >= GAIN and seed["seconds"] <= MINUTES * 60


def keep(found: dict[str, list[dict[str, Any]]]) -> None:
    """The JSON file and the pictures."""
    here = Path(__file__).parent
    about = {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {processor()}",
        "jax": jax.__version__,
        "commands": {name: " ".join(command_of(name, 0, Path("FOLDER"))[1:]) for name in RUNS},
    }
    (here / "learning.json").write_text(json.dumps({**about, "runs": found}, indent=None) + "\n")
    for name, (what, of) in PLOTS.items():
        draw(name, what, {label: found[label] for label in of}, here)


if __name__ == "__main__":
    sys.exit(main())
