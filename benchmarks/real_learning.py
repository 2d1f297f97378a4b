"""Do published models learn on two CPU cores? The recipes `real-sums`, with three seeds, and `real-gsm8k`.

    pip install gguf matplotlib
    python benchmarks/real_weights.py
    python benchmarks/real_learning.py --folder runs/real --gsm8k path/to/gsm8k [--only real-sums] [--seeds 0 1 2]

`path/to/gsm8k` has GSM8K's train.jsonl and test.jsonl; `openai/gsm8k:main` fetches them. A call that is interrupted
goes on where it stopped; the seconds of all calls count. Writes real_learning.json and learning_real_*.png beside this
file, once all runs are there. Exit code 1 where a claim fails: see CLAIMS.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
from hardware import processor
from learning import curves, draw

PROBLEMS = 128
MODEL = "~/.cache/grpo-jax/real_weights/Qwen2.5-Coder-0.5B-Instruct"


def sums_rise(run: dict[str, Any]) -> bool:
    """By 20 points within an hour."""
    return run["success_after"] - run["success_before"] >= 0.20 and run["seconds"] <= 3600


def gsm8k_rises(run: dict[str, Any]) -> bool:
    """Strict by 20 points, flexible by more than two standard errors, within three hours."""
    strict, flexible = run["evaluation"]["strict"], run["evaluation"]["flexible"]
    learned = strict["change"] >= 0.20 and flexible["change"] > 2 * flexible["stderr"]
    return learned and run["seconds"] <= 3 * 3600


CLAIMS: dict[str, Callable[[dict[str, Any]], bool]] = {"real-sums": sums_rise, "real-gsm8k": gsm8k_rises}


def train_command(name: str, seed: int, folder: Path, gsm8k: str) -> list[str]:
    """What is typed to train, and to go on."""
    data = ["--dataset", gsm8k] if name == "real-gsm8k" else []
    return [*_grpo_jax("train", name), "--seed", str(seed), "--output_dir", str(folder), *data]


def eval_command(model: str, gsm8k: str, output: Path, *compared: str) -> list[str]:
    """What is typed to measure GSM8K: greedy, under the recipe's own prompt and length."""
    from grpo_jax.config import GRPOConfig, load_settings

    recipe = load_settings(GRPOConfig, "real-gsm8k")
    options = {
        "model": model,
        "task": "gsm8k",
        "data": gsm8k,
        "prompts": PROBLEMS,
        "samples": 1,
        "system_prompt": recipe.system_prompt,
        "max_prompt_length": recipe.max_prompt_length,
        "max_completion_length": recipe.max_completion_length,
        "output": output,
    }
    typed = [text for what, value in options.items() for text in (f"--{what}", str(value))]
    return [*_grpo_jax("eval"), *typed, *compared]


def _grpo_jax(*words: str) -> list[str]:
    return [sys.executable, "-m", "grpo_jax", *words]


def timed(command: list[str], costs: Path) -> None:
    """Run it, and add its seconds to the file `costs`, also if it is interrupted."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=sys.stderr)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except KeyboardInterrupt:  # it has heard that too, and saves
        _, status, usage = os.wait4(child.pid, 0)
    spent = json.loads(costs.read_text()) if costs.exists() else []
    seconds = {"seconds": time.perf_counter() - start, "processor_seconds": usage.ru_utime + usage.ru_stime}
    spent.append({"command": command[3:5], **{what: round(value, 1) for what, value in seconds.items()}})
    costs.write_text(json.dumps(spent))
    if status:
        raise SystemExit(f"{' '.join(command[1:5])}: status {os.waitstatus_to_exitcode(status)}")


def run(name: str, seed: int, within: Path, gsm8k: str) -> dict[str, Any]:
    """One run's costs, curves and figures."""
    folder = within / f"{name}-seed{seed}"
    costs = within / f"{folder.name}-costs.json"
    before, after = (within / f"{folder.name}-{when}.json" for when in ("before", "after"))
    measured = name == "real-gsm8k"
    if measured and not before.exists():
        timed(eval_command(MODEL, gsm8k, before), costs)
    if not (folder / "summary.json").exists():
        timed(train_command(name, seed, folder, gsm8k), costs)
    if measured and not after.exists():
        timed(eval_command(f"{folder}/hf", gsm8k, after, "--compare", str(before)), costs)
    spent = json.loads(costs.read_text())
    total = {what: sum(call[what] for call in spent) for what in ("seconds", "processor_seconds")}
    found = {"seed": seed, **total, **curves(folder)}
    return found | {"evaluation": changes(before, after)} if measured else found


def changes(before: Path, after: Path) -> dict[str, dict[str, float]]:
    """Strict and flexible success before and after, and the change with its standard error, problem by problem."""
    import numpy as np
    import pyarrow.parquet as pq

    tables = [pq.read_table(file.with_suffix(".parquet")).to_pydict() for file in (before, after)]
    found = {}
    for judge in ("strict", "flexible"):
        old, new = (np.array(table[judge], float) for table in tables)
        error = float((new - old).std(ddof=1) / np.sqrt(len(old)))
        found[judge] = {
            "before": old.mean(),
            "after": new.mean(),
            "change": (new - old).mean(),
            "stderr": error,
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gsm8k", default="openai/gsm8k:main")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of real-sums")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    seeds = {"real-sums": given.seeds, "real-gsm8k": [0]}
    found = {
        name: [run(name, seed, given.folder, given.gsm8k) for seed in seeds[name]] for name in given.only
    }
    keep(found)
    return 0 if all(CLAIMS[name](one) for name, runs in found.items() for one in runs) else 1


def keep(found: dict[str, list[dict[str, Any]]]) -> None:
    """Add the runs to the JSON file, and draw their curves."""
    here = Path(__file__).parent
    file = here / "real_learning.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else {}
    about = {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {processor()}",
        "jax": jax.__version__,
    }
    file.write_text(json.dumps({**about, "runs": runs | found}, indent=None) + "\n")
    for name, seeds in found.items():
        draw(name.replace("-", "_"), "held-out success", {name: seeds}, here)


if __name__ == "__main__":
    sys.exit(main())
