"""Evaluation: how often a model succeeds on held-out prompts; the same numbers for any batch size or mesh."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from grpo_jax.capacity import demand_of
from grpo_jax.config import EvalConfig
from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.data.sources import load_rows
from grpo_jax.drawing import evaluation_of, sampling_of, stop_of
from grpo_jax.policy import Policy, open_policy
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.generate import Rollout
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.rollout.stopping import Stop
from grpo_jax.runs.files import check_writable, write_atomically
from grpo_jax.scoring import Scored, Scorer
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import row_shards
from grpo_jax.weights import load_sampler

EVALUATION = 1  # the sampler's stream of random numbers; training uses 0


@dataclass(frozen=True)
class Evaluation:
    """Results on N problems with n samples each. A sample succeeds when the first reward function gives it 1 or
    more: put the one that judges correctness first."""

    rewards: np.ndarray  # [N,n] float32, NaN where no function applied
    successes: np.ndarray  # [N,n] bool
    lengths: np.ndarray  # [N,n] tokens
    finished: np.ndarray  # [N,n] bool
    samples: list[dict[str, Any]]  # the first few problems: prompt, completion, reward
    failures: dict[str, int]  # rows lost to faults of reward functions, by "rewards/{name}/{kind}"
    metrics: dict[str, float]  # what reward functions logged

    def summary(self) -> dict[str, float]:
        """Means over problems; `success_stderr` is the standard error over problems."""
        return {
            "success": float(self.successes.mean()),
            "success_stderr": standard_error(self.successes.mean(1)),
            "reward": float(np.nanmean(self.rewards)) if not np.isnan(self.rewards).all() else math.nan,
            "length": float(self.lengths.mean()),
            "clipped_ratio": float(1 - self.finished.mean()),
            "prompts": len(self.successes),
            **self.failures,
            **self.metrics,
        }


class Evaluator:
    """Samples and scores a fixed set of prompts. UserError for a reward whose column they do not have."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        scorer: Scorer,
        how: Sampling,
        *,
        samples: int,
        width: int,
        seed: int,
        at_a_time: int = 64,
        segment: int = 64,
        stop: Stop | None = None,
    ):
        scorer.check(prompts)
        self.policy, self.prompts, self.scorer = policy, prompts, scorer
        shards = row_shards(policy.mesh)
        wanted = max(min(at_a_time, len(prompts)), 1)
        self.at_a_time = math.ceil(wanted / shards) * shards
        self.sampler = Sampler(
            policy.cfg,
            policy.vocabulary,
            how,
            samples=samples,
            width=width,
            mesh=policy.mesh,
            seed=seed,
            purpose=EVALUATION,
            segment=segment,
            stop=stop,
            cache=policy.rollout_cache,
            attention=policy.attention,
        )

    @property
    def demand(self) -> Demand:
        """What a batch of prompts asks of the memory."""
        return demand_of(self.policy, self.at_a_time, self.sampler, self.prompts.max_prompt_length)

    def __call__(self, params: Any, trainer_state: Any = None) -> Evaluation:
        """Evaluate weights in the rollout's dtype and layout, inside the policy's mesh. `trainer_state` goes to the
        reward functions that ask for it."""
        parts = list(self._parts(params, trainer_state))
        join = lambda pick: np.concatenate([pick(part) for part in parts])
        return Evaluation(
            rewards=join(lambda p: p[3].base[: p[1]]),
            successes=join(lambda p: p[3].successes[: p[1]] == 1),
            lengths=join(lambda p: p[2].lengths[: p[1]]),
            finished=join(lambda p: p[2].finished[: p[1]]),
            samples=_samples(parts[0][0], parts[0][3]),
            failures=dict(sum((Counter(part[3].failures) for part in parts), Counter())),
            metrics=Scored.join([part[3] for part in parts]).metrics,
        )

    def _parts(self, params: Any, trainer_state: Any) -> Iterator[tuple[PromptBatch, int, Rollout, Scored]]:
        """Each batch with the number of its real prompts: the last may be filled up with repeats."""
        for batch, real in self.prompts.batches_in_order(self.at_a_time):
            with self.scorer.stream(batch, self.sampler.samples, trainer_state) as scoring:
                arrays = batch.tokens, batch.lengths, batch.uids
                rollout = self.sampler(params, *arrays, step=0, on_group=scoring.add)
                scored = scoring.finish(rollout)
            yield batch, real, rollout, scored


def _samples(batch: PromptBatch, scored: Scored, count: int = 4) -> list[dict[str, Any]]:
    G = scored.base.shape[1]
    return [
        {
            "prompt": batch.texts[i],
            "completion": scored.completions[i * G],
            "reward": float(scored.base[i, 0]),
        }
        for i in range(min(count, len(batch.texts)))
    ]


def pass_at_k(successes: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k [N] from successes [N,n]: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374)."""
    n = successes.shape[1]
    miss = lambda c: math.comb(n - int(c), k) / math.comb(n, k)
    return np.array([1.0 - miss(c) for c in successes.sum(1)])


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over problems [N]; 0 for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def evaluate_command(config: EvalConfig) -> int:
    """The verb `eval`: avg@N and pass@k with standard errors, and greedy; a table, and JSON with `output`."""
    if config.output:
        check_writable(config.output)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    prompts = _held_out(config, policy)
    results: dict[str, Any] = {"model": config.model, "task": config.task, "split": config.split}
    with (
        RewardPool(
            config.rewards,
            workers=config.reward_workers,
            timeout=config.reward_timeout,
            on_error=config.on_reward_error,
        ) as pool,
        jax.set_mesh(policy.mesh),
    ):
        scorer = Scorer(pool, None, policy.tokenizer)
        ways = {
            name: _evaluator(config, policy, prompts, scorer, how, samples)
            for name, how, samples in _ways(config, policy)
        }
        weights = load_sampler(policy)
        results |= {name: report(evaluator(weights)) for name, evaluator in ways.items()}
    if hosts.is_writer():
        _print(results)
        if config.output:
            write_atomically(config.output, json.dumps(results, indent=2) + "\n")
    return 0


def report(result: Evaluation) -> dict[str, float]:
    """The summary, with avg@n and pass@k for k = 1, 2, 4, ... n where there are several samples."""
    n = result.successes.shape[1]
    summary = result.summary()
    if n == 1:
        return summary
    figures = {f"avg@{n}": result.successes.mean(1)}
    figures |= {f"pass@{k}": pass_at_k(result.successes, k) for k in _powers_of_two(n)}
    for name, values in figures.items():
        summary |= {name: float(values.mean()), f"{name}_stderr": standard_error(values)}
    return summary


def _powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})


def _ways(config: EvalConfig, policy: Policy) -> list[tuple[str, Sampling, int]]:
    """(name, how to draw, samples) of each part of the evaluation."""
    ways = [("greedy", evaluation_of(config, policy, 0.0), 1)] if config.greedy else []
    drawn = sampling_of(config, policy)
    return ways + ([("sampled", drawn, config.samples)] if config.samples else [])


def _held_out(config: EvalConfig, policy: Policy) -> Prompts:
    rows = load_rows(config.task, config.split, seed=config.seed)
    return Prompts(
        rows[: config.prompts or None],
        policy.tokenizer,
        max_prompt_length=config.max_prompt_length,
        system_prompt=config.system_prompt,
        prefill=config.prefill,
        pad_id=policy.vocabulary.pad_id,
        prompt_column=config.prompt_column,
        layout=config.layout,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def _evaluator(
    config: EvalConfig, policy: Policy, prompts: Prompts, scorer: Scorer, how: Sampling, samples: int
) -> Evaluator:
    return Evaluator(
        policy,
        prompts,
        scorer,
        how,
        samples=samples,
        width=config.max_completion_length,
        seed=config.seed,
        at_a_time=config.prompts_per_step,
        stop=stop_of(config, policy),
    )


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    ways = [name for name in ("greedy", "sampled") if name in results]
    table = Table("", *ways, title=f"{results['model']} on {results['task']} ({results['split']})")
    names = {name: None for way in ways for name in results[way] if not name.endswith("_stderr")}
    for name in names:
        table.add_row(name, *(_cell(results[way], name) for way in ways))
    Console().print(table)


def _cell(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return ""
    error = figures.get(f"{name}_stderr")
    return f"{figures[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")
