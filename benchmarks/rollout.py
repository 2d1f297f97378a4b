"""What segments are worth: the same rollouts drawn whole and in segments, in one process, by turns.

    python benchmarks/rollout.py                 # the 10M shape, 8 prompts x 8 completions
    python benchmarks/rollout.py --width 1024 --mean 128

Two workloads: `equal`, where every completion runs to the limit, and `skewed`, where lengths are geometric with the
mean asked for: among 64 rows the longest is then about four times as long. Every row's length comes from the sampler
itself: the ids that end a completion are that share of the vocabulary, and random weights draw nearly uniformly.
"""

import argparse
import json
import statistics
import time
from datetime import date
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from shapes import SMALL

from grpo_jax.models.config import PUBLISHED, ModelConfig
from grpo_jax.models.transformer import Params, abstract_params, cast, init
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.state import Vocabulary
from grpo_jax.setup.policy import compute_dtype
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, shardings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="10m", choices=[*SMALL, *PUBLISHED])
    for name, value in {"prompts": 8, "samples": 8, "prompt_length": 64, "width": 512, "mean": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--segments", type=int, nargs="+", default=[0, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    print(json.dumps(measure(parser.parse_args()), indent=2))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over `repeats` rounds; in each, every way of drawing has its turn."""
    cfg = (SMALL | PUBLISHED)[args.shape]
    mesh, dtype = make_mesh(), compute_dtype("auto")
    with jax.set_mesh(mesh):
        layout = shardings(abstract_params(cfg), ROLLOUT_RULES, mesh)
        make = jax.jit(lambda key: cast(init(cfg, key), dtype), out_shardings=layout)
        params = make(jax.random.key(0))
        found = {
            name: workload(cfg, params, args, mesh, enders)
            for name, enders in {"equal": 0, "skewed": cfg.vocab_size // args.mean}.items()
        }
    device = jax.devices()[0].device_kind
    return {"date": str(date.today()), "device": device, "dtype": dtype, **vars(args), **found}


def workload(cfg: ModelConfig, params: Params, args: argparse.Namespace, mesh: Any, enders: int) -> dict:
    """Tokens a second by segment; `enders` ids end a completion."""
    vocabulary = Vocabulary(tuple(range(enders)), 0, cfg.vocab_size)
    samplers = {
        segment: ContinuousBatchingSampler(
            cfg,
            vocabulary,
            SamplingParams(),
            num_generations=args.samples,
            max_completion_length=args.width,
            mesh=mesh,
            seed=0,
            segment=segment,
        )
        for segment in args.segments
    }
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab_size, (args.prompts, args.prompt_length), np.int32)
    prompts = SimpleNamespace(
        tokens=tokens,
        lengths=np.full(args.prompts, args.prompt_length, np.int32),
        uids=np.arange(args.prompts, dtype=np.uint32),
    )
    seconds: dict[int, list[float]] = {segment: [] for segment in samplers}
    drawn = {}
    for turn in range(args.repeats + 1):  # the first compiles
        for segment, sampler in samplers.items():
            start = time.perf_counter()
            drawn[segment] = sampler(params, prompts, step=0)
            if turn:
                seconds[segment].append(time.perf_counter() - start)
    first = drawn[args.segments[0]]
    rows = np.asarray(first.lengths)
    return {
        "lengths": {"mean": float(rows.mean()), "max": int(rows.max())},
        "same_tokens_in_all": all(np.array_equal(x.tokens, first.tokens) for x in drawn.values()),
        "tokens_per_second": {s: round(int(rows.sum()) / statistics.median(t)) for s, t in seconds.items()},
        "compilations": {s: sampler.compilations for s, sampler in samplers.items()},
    }


if __name__ == "__main__":
    main()
