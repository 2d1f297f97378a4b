"""What the settings that save memory or work cost and gain in an update, on the machine at hand, as JSON.

    python benchmarks/levers.py > levers_10m.json

Each workload's forms take turns, `--rounds` times; seconds are medians of an update with its reference's scoring, the
ratio is to the workload's plain form. Memory is not read here: `benchmarks/plans.py` has the compilers' figures.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from datetime import date

import jax
import numpy as np
from hardware import processor
from shapes import SMALL
from throughput import Bench, Work

from grpo_jax.models.transformer import init
from grpo_jax.setup.policy import compute_dtype
from grpo_jax.sharding.mesh import make_mesh

PLAIN = Work(prompts=2, samples=8, prompt_length=64, completion_length=128, micro_batch_size=8, beta=0.04)
LONG_PROMPTS = replace(PLAIN, prompts=1, samples=16, prompt_length=512)
SKEWED = replace(PLAIN, prompts=4, completion_length=256, skewed=True)
WORKLOADS = {
    "2 x 8 rows of 64+128": [
        replace(PLAIN, gradient_checkpointing="none"),
        replace(PLAIN, gradient_checkpointing="dots"),
        PLAIN,
        replace(PLAIN, gradient_checkpointing="offload"),
        replace(PLAIN, share_prompts=True),
    ],
    "1 x 16 rows of 512+128": [LONG_PROMPTS, replace(LONG_PROMPTS, share_prompts=True)],
    "4 x 8 rows of 64+256, seven in eight of 64+32": [
        SKEWED,
        replace(SKEWED, length_buckets=4),
        replace(SKEWED, length_buckets=4, share_prompts=True),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SMALL, default="10m")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = {name: compared(args.model, works, args.rounds) for name, works in WORKLOADS.items()}
    where = {"processor": processor(), "jax": jax.__version__, "date": date.today().isoformat()}
    print(json.dumps({"model": args.model, "rounds": args.rounds, **where, "workloads": found}, indent=1))


def compared(model: str, works: list[Work], rounds: int) -> list[dict]:
    """Each form's median seconds, in turns after one that compiles."""
    cfg, mesh = SMALL[model], make_mesh({"fsdp": 1})
    seconds: list[list[float]] = [[] for _ in works]
    with jax.set_mesh(mesh):
        bench = lambda work: Bench(cfg, init(cfg, jax.random.key(0)), work, mesh, compute_dtype("auto"))
        benches = list(map(bench, works))
        losses = [bench.update()["loss"] for bench in benches]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-3, atol=1e-5)
        for _ in range(rounds):
            for bench, taken in zip(benches, seconds):
                start = time.perf_counter()
                bench.update()
                taken.append(time.perf_counter() - start)
    plain = statistics.median(next(s for s, work in zip(seconds, works) if _is_plain(work)))
    return [
        {name: value for name, value in asdict(work).items() if value != getattr(PLAIN, name)}
        | {"seconds": statistics.median(s), "to_plain": statistics.median(s) / plain, "all": s}
        for s, work in zip(seconds, works)
    ]


def _is_plain(work: Work) -> bool:
    return work.gradient_checkpointing == "full" and not work.share_prompts and work.length_buckets == 1


if __name__ == "__main__":
    main()
