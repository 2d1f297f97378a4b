"""The same model, prompts and lengths through this project, TRL and Google Tunix: seconds, tokens/s, peak memory.

    python benchmarks/compare.py                                       # 10M parameters, three rounds
    python benchmarks/compare.py --model 60m --systems ours trl --workloads equal --output 60m.json

`--model` is 10m or 60m (random weights of that shape) or a folder in Hugging Face format. TRL and Tunix get virtual
environments of their own below `--environments`, built by pip the first time. All run on the processor, in float32.

Workloads: `equal`, 8 prompts of 64 tokens x 8 completions of exactly 128; `skewed`, the same prompts with four
completions of 512 among 64 whose mean is 64; `shared_prompt`, 4 prompts of 512 x 16 completions of 128.

Measures: `rollout` (sampling at temperature 1), `score` (log-probs of given rows), `update` (of given rows: the
reference's log-probs, loss, gradient, clipping, AdamW), `step` (sampling, rewards, advantages and update). Every
system stays alive in a process of its own and is told to do one thing at a time, by turns, so that nothing is
compiled while the clock runs and only one works. A ratio is of one round's two times; the table has its median. The
JSON has every round's seconds, and how many cores other processes used meanwhile: on a crowded machine threads wait
for one another, and not all systems suffer alike.

Memory is the process's resident peak during the measure, everything that stays loaded (weights, reference, moments)
included. Equal work: loss `grpo`, KL (k3) to a reference, gradients clipped at 1, entropy computed, micro-batches of
the same rows, gradient checkpointing in all or in none (Tunix 0.1.7 cannot sample with it). The model is checked to
be the same: all must give the same log-probs. A system that fails is a line of the table; its log is in
`--environments`/logs.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from comparison import figures, work
from comparison.environments import SYSTEMS
from comparison.rounds import Comparison, settings
from hardware import processor

ROOT = Path(__file__).resolve().parents[1]


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
    print(
        figures.table(result["workloads"]), *figures.remarks(result["workloads"]), sep="\n", file=sys.stderr
    )
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
    for name in args.workloads:
        if args.micro_batch_size < 1 or work.WORKLOADS[name].rows % args.micro_batch_size:
            rows = work.WORKLOADS[name].rows
            raise UserError(
                f"--micro_batch_size = {args.micro_batch_size}: it must divide {rows} rows ({name})"
            )
    if args.output and not args.output.resolve().parent.is_dir():
        raise UserError(f"--output: no folder {args.output.parent}")
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
        "shape": dataclasses.asdict(args.config),
        "rounds": args.rounds,
        "settings": settings(args),
        "workloads": workloads,
    }


def _model(args: argparse.Namespace, scratch: Path) -> Path:
    """The folder of the model; random weights are written to one."""
    from shapes import SMALL

    if args.model not in SMALL:
        return Path(args.model).resolve()
    import jax

    from grpo_jax.models.hf import save_model
    from grpo_jax.models.transformer import init

    save_model(scratch / "model", args.config, init(args.config, jax.random.key(0)), dtype="float32")
    return scratch / "model"


if __name__ == "__main__":
    sys.exit(main())
