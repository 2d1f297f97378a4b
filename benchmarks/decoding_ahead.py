"""What drawing a token costs on hardware that is not here, as the compiler's own program says.

    python benchmarks/decoding_ahead.py                            # 1.5B on one H200 and on one v5e chip
    python benchmarks/decoding_ahead.py --targets b200:1 --layers 4

It compiles the rollout's `decode` ahead of time (`pip install 'grpo-jax[plan]'`) and counts in the optimised program
what a token makes a device write: a step reads all weights and the cache and writes next to nothing, so whatever is
written beside activations is a copy of weights or cache. `kernels` are the instructions of a step that run by
themselves. Kernels cannot be tuned ahead of time on GPUs; what is chosen there may differ.
"""

import argparse
import dataclasses
import json
import re
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.config import PUBLISHED
from grpo_jax.plans import abstract_arguments
from grpo_jax.plans.hlo import INSTRUCTION, computations, loops, size
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.programs import Programs, Vocabulary
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.state import Decoder, TableSize, empty_state
from grpo_jax.sharding.mesh import everywhere
from grpo_jax.sharding.targets import topology_mesh

VOCABULARY = Vocabulary((151645, 151643), 0, 151665)
# Instructions without a kernel, and those that write into an array that is there.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "iota"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=["h200:1", "v5e:1x1"])
    parser.add_argument("--shape", default="1.5b", choices=list(PUBLISHED))
    for name, value in {"layers": 0, "prompts": 16, "samples": 8, "prompt_length": 512, "slots": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cache", default="auto", choices=["auto", "int8"])
    args = parser.parse_args()
    found = [measure(args, target) for target in args.targets]
    print(
        json.dumps(
            {"jax": jax.__version__, "libtpu": version("libtpu"), **vars(args), "found": found}, indent=2
        )
    )


def measure(args: argparse.Namespace, target: str) -> dict[str, Any]:
    """Compile `decode` for one device of `target`."""
    cfg = PUBLISHED[args.shape]
    cfg = dataclasses.replace(cfg, num_layers=args.layers or cfg.num_layers)
    mesh, size = topology_mesh(target), TableSize(args.prompts, args.samples, args.slots)
    decoder = Decoder(cfg, VOCABULARY, SamplingParams(), cache_dtype=args.cache)
    programs, here = Programs(decoder, 64, mesh), everywhere(mesh)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    state = jax.tree.map(
        place, jax.eval_shape(partial(empty_state, decoder, size, args.prompt_length, jnp.dtype("bfloat16")))
    )
    weights = abstract_arguments.sampler_copy(cfg, mesh, "bfloat16")
    start = time.perf_counter()
    compiled = abstract_arguments.compile_for(target, mesh, programs.decode, weights, state)
    seconds = time.perf_counter() - start
    demand = Demand(
        cfg=cfg,
        dtype="bfloat16",
        prompts=args.prompts,
        num_generations=args.samples,
        max_completion_length=args.slots,
        prompt_width=args.prompt_length,
        cache_dtype=args.cache,
    )
    written, kernels, largest = step_of(compiled.as_text(), cfg.num_layers)
    memory = compiled.memory_analysis()
    return {
        "target": target,
        "must_read_mib": _mib(
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights)) + demand.cache_bytes(size)
        ),
        "written_mib": _mib(written),
        "kernels": kernels,
        "largest_written": largest,
        "temporary_mib": _mib(memory.temp_size_in_bytes),
        "compile_seconds": round(seconds, 1),
    }


def step_of(text: str, layers: int) -> tuple[int, int, list[str]]:
    """(bytes written to the device's memory, kernels, the largest results) of one token: the body of the outermost
    loop, and the bodies of loops in it as often as they run (where a TPU's program does not say it: once a layer)."""
    parts = computations(text)
    entry = next(name for name in parts if name.startswith("ENTRY"))
    outer = [x for x in loops(parts[entry]) if x[1] is None]
    assert len(outer) == 1, outer
    results: list[tuple[int, int, str]] = []
    _walk(parts, outer[0][0], 1, layers, results)
    results.sort(key=lambda x: -x[0] * x[1])
    largest = [f"{times} x {shape}" for _, times, shape in results[:6]]
    return sum(size * times for size, times, _ in results), sum(times for _, times, _ in results), largest


def _walk(
    parts: dict[str, list[str]],
    name: str,
    times: int,
    layers: int,
    results: list[tuple[int, int, str]],
) -> None:
    for line in parts[name]:
        found = INSTRUCTION.match(line)
        if not found or found[3] in FREE or re.search(r"(-start|-done)$", found[3]):
            continue  # what is fetched ahead into a TPU's own memory is read, not written
        if _in_place(line, parts):
            continue
        results.append((size(found[2]), times, f"{found[2].split('{')[0]} {found[1]}"))
    for body, count in loops(parts[name]):
        _walk(parts, body, times * (count or layers), layers, results)


def _in_place(line: str, parts: dict[str, list[str]]) -> bool:
    """Whether an instruction writes a slice into an array that is there."""
    if "dynamic-update-slice(" in line:
        return True
    called = re.search(r"calls=%?([\w.-]+)", line)
    inside = parts.get(called[1], []) if called else []
    return any("dynamic-update-slice(" in x or "dynamic_update_slice" in x for x in inside)


def _mib(count: float) -> float:
    return round(count / 2**20, 1)


if __name__ == "__main__":
    main()
