"""Tokens a second of the rollout, of scoring and of the update, and the time of a whole step, as JSON.

    python benchmarks/throughput.py --model 10m
    python benchmarks/throughput.py --model path/to/a/folder --prompts 64 --samples 16 --prompt_length 512

`--model` is a folder in Hugging Face format or a named shape (10m, 60m, or a published size: 0.5b ... 72b) with
random weights. Completions run to their full length: no end-of-sequence id is given. Each figure is the median of
`--repeats` runs after one that compiles; a step is rollout + scoring by the reference (beta > 0) + update, rewards
left out. Memory is the device's peak where it keeps one, else the process's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from shapes import SMALL

from grpo_jax.learner.batches import Passes, minibatches
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models import hf
from grpo_jax.models.config import PUBLISHED, ModelConfig
from grpo_jax.models.remat import Remat
from grpo_jax.models.transformer import Params, abstract_params, cast, init
from grpo_jax.plans.roofline import forward_flops
from grpo_jax.program import Program
from grpo_jax.rollout.programs import Rollout, Vocabulary
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.runs.metrics import peak_memory
from grpo_jax.setup.policy import compute_dtype
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.mesh_spec import parse_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings


@dataclass(frozen=True)
class Work:
    """The sizes of a step."""

    prompts: int
    samples: int
    prompt_length: int
    completion_length: int
    micro_batch_size: int
    beta: float
    gradient_checkpointing: Remat = "full"
    share_prompts: bool = False
    length_buckets: int = 1
    skewed: bool = False

    @property
    def sampled(self) -> int:
        """Tokens a rollout makes."""
        return self.prompts * self.samples * self.completion_length

    @property
    def trained(self) -> int:
        """Tokens that an update learns from, their prompts with them; as many as pass through the model in the plain
        form where no completion is short."""
        rows = self.prompts * self.samples
        return rows * self.prompt_length + int(self.lengths.sum())

    @property
    def lengths(self) -> np.ndarray:
        """[P,G] tokens of the completions: all the same, or (`skewed`) one in eight so long, the others an eighth."""
        long = (np.arange(self.prompts * self.samples) % 8 == 0) | (not self.skewed)
        lengths = np.where(long, self.completion_length, max(self.completion_length // 8, 1))
        return lengths.reshape(self.prompts, self.samples).astype(np.int32)

    def update_flops(self, cfg: ModelConfig) -> float:
        """Operations of an update forward and backward: 6 for each weight and token, and attention over what comes
        before; recomputation and the reference are not counted, nor is anything saved by sharing."""
        width = self.prompt_length + self.completion_length
        return 3 * forward_flops(cfg, self.trained, width / 2)


class Bench:
    """The programs of a GRPO step for one model, and the arrays that they work on."""

    def __init__(self, cfg: ModelConfig, weights: Params, work: Work, mesh: jax.sharding.Mesh, dtype: str):
        self.work, self.rows = work, work.prompts * work.samples
        vocabulary = Vocabulary((), 0, cfg.vocab_size)
        self.sampler = ContinuousBatchingSampler(
            cfg,
            vocabulary,
            SamplingParams(),
            num_generations=work.samples,
            max_completion_length=work.completion_length,
            mesh=mesh,
            seed=0,
        )
        objective = GRPO(beta=work.beta, max_length=work.completion_length)
        passes = Passes(
            micro_batch_size=work.micro_batch_size,
            share_prompts=work.share_prompts,
            length_buckets=work.length_buckets,
        )
        logprob_settings = LogprobSettings(dtype=dtype, remat=work.gradient_checkpointing)
        optimizer = make_optimizer(Schedule(1e-6, "constant", 0, 1))
        shape = work.prompts, work.samples
        self.learner = Learner(
            cfg=cfg,
            objective=objective,
            logprob_settings=logprob_settings,
            optimizer=optimizer,
            passes=passes,
            shape=shape,
            mesh=mesh,
        )
        if work.beta > 0:
            self.learner.set_reference(weights)
        self.state = self.learner.init(weights)
        layout = shardings(abstract_params(cfg), ROLLOUT_RULES, mesh)
        self.refresh = Program("refresh", lambda p: cast(p, jnp.dtype(dtype)), out_shardings=layout)
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, cfg.vocab_size, (work.prompts, work.prompt_length), np.int32)
        self.lengths = np.full(work.prompts, work.prompt_length, np.int32)
        self.advantages = rng.normal(size=(work.prompts, work.samples)).astype(np.float32)
        rows = work.prompts, work.samples, work.completion_length
        completions = rng.integers(0, cfg.vocab_size, rows, np.int32)
        logprobs = np.full(rows, -np.log(cfg.vocab_size), np.float32)
        arrays = completions, logprobs, work.lengths, np.ones(rows[:2], bool)
        prompts = SimpleNamespace(tokens=self.tokens, lengths=self.lengths)
        self.groups = SimpleNamespace(batch=prompts, rollout=Rollout.of_policy(*arrays))
        (part,) = minibatches(self.groups, self.advantages, passes, skip=False, unit=self.learner.unit)
        self.batch = self.learner.on_devices(part)

    def sample(self) -> Any:
        uids = np.arange(self.work.prompts, dtype=np.uint32)
        weights = self.refresh(self.state.params)
        prompts = SimpleNamespace(tokens=self.tokens, lengths=self.lengths, uids=uids)
        return self.sampler(weights, prompts, step=0)

    def score(self) -> Any:
        return jax.block_until_ready(self.learner.score(self.state.params, self.batch.rows, self.batch.ends))

    def update(self) -> Any:
        self.state, metrics = self.learner(self.state, self.groups, self.advantages)
        return metrics


def measure(action: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `repeats` runs after one that compiles."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def product_speed(dtype: str, n: int = 4096) -> float:
    """Operations a second of a product of two n x n matrices on one device."""
    x = jnp.ones((n, n), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    return 2 * n**3 / measure(lambda: jax.block_until_ready(multiply(x, x)), 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All figures and what they were measured on."""
    mesh, dtype = make_mesh(parse_mesh(args.mesh)), compute_dtype(args.dtype)
    cfg = _config(args.model)
    names = Work.__dataclass_fields__
    work = Work(**{name: getattr(args, name) for name in names})
    with jax.set_mesh(mesh):
        bench = Bench(cfg, _weights(args.model, cfg, mesh), work, mesh, dtype)
        rollout = measure(bench.sample, args.repeats)
        score = measure(bench.score, args.repeats)
        update = measure(bench.update, args.repeats)
    product = product_speed(dtype)
    memory, where = peak_memory()
    return {
        "model": args.model,
        "parameters": sum(x.size for x in jax.tree.leaves(abstract_params(cfg))),
        "dtype": dtype,
        "mesh": dict(mesh.shape),
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "date": date.today().isoformat(),
        **vars(work),
        "rollout_seconds": rollout,
        "rollout_tokens_per_second": work.sampled / rollout,
        "score_tokens_per_second": work.trained / score,
        "update_seconds": update,
        "update_tokens_per_second": work.trained / update,
        "update_flops_per_second": work.update_flops(cfg) / update,
        "product_flops_per_second": product,  # of one large matrix product, measured in this run
        "update_mfu": work.update_flops(cfg) / update / product / mesh.size,
        "step_seconds": rollout + update,
        "step_tokens_per_second": work.sampled / (rollout + update),
        "peak_memory_bytes": memory,
        "peak_memory_of": where,
    }


def _config(model: str) -> ModelConfig:
    named = SMALL | PUBLISHED
    return named[model] if model in named else hf.load_config(hf.resolve_model(model))


def _weights(model: str, cfg: ModelConfig, mesh: jax.sharding.Mesh) -> Params:
    layout = shardings(abstract_params(cfg), TRAIN_RULES, mesh)
    if model in SMALL | PUBLISHED:
        return Program("random", lambda: init(cfg, jax.random.key(0)), out_shardings=layout)()
    return hf.load_params(hf.resolve_model(model), cfg, layout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="10m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt_length", type=int, default=64)
    parser.add_argument("--completion_length", type=int, default=128)
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--gradient_checkpointing", choices=get_args(Remat), default="full")
    parser.add_argument("--share_prompts", action="store_true")
    parser.add_argument("--length_buckets", type=int, default=1)
    parser.add_argument(
        "--skewed", action="store_true", help="seven completions in eight are an eighth as long"
    )
    parser.add_argument("--mesh", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
