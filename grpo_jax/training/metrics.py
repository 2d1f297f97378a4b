"""Metrics of a step, the summary of a run, and its closing table."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.errors import plural
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.metrics import peak_memory, rollout_metrics, speed_metrics
from grpo_jax.runs.progress import closing_table, sample_panel
from grpo_jax.runs.run import Stopwatch
from grpo_jax.training.assembly import Components
from grpo_jax.training.collector import Groups
from grpo_jax.training.reflection import Reflection
from grpo_jax.training.run_state import RunState


def step_metrics(
    components: Components,
    stage: int,
    sampled: Groups,
    run_state: RunState,
    *,
    clock: Stopwatch,
    seconds: float,
    done: int,
) -> dict[str, Any]:
    """A step's metrics besides the learner's own, of everything that was sampled in it. `stage` is the
    stage of the curriculum that it belonged to; `run_state` is that after it."""
    scorer = components.stages[stage].scorer
    rollout, scored = sampled.rollout, sampled.scored
    P, G = rollout.lengths.shape
    lengths = np.asarray(rollout.chosen)
    tokens = int(lengths.sum())
    names, weights = scorer.pool.names, scorer.weights
    return {
        **rollout_metrics(lengths, rollout.finished, scored.values.reshape(P * G, -1), names, weights),
        **scored.failures,
        **scored.metrics,
        **(
            components.reflection.metrics(scored.completions, lengths.ravel())
            if components.reflection
            else {}
        ),
        **_curriculum(components.curriculum, stage, run_state),
        **_by_domain(sampled),
        **speed_metrics(seconds, tokens, run_state.num_tokens),
        **clock.times,
        **{f"compilations/{name}": count for name, count in _compilations(components).items()},
        "rollout_tokens_per_second": tokens / clock.times["time/rollout"],
        **_learning_rate(components, done),
        "peak_memory": peak_memory()[0],
    }


def _curriculum(curriculum: CurriculumSampler, stage: int, run_state: RunState) -> dict[str, float]:
    """The stage, if there are several, and the prompts that take part in it, if some are left out."""
    found: dict[str, float] = {}
    if len(curriculum.stages) > 1:
        found["curriculum/stage"] = stage + 1
    if curriculum.filters:
        found["curriculum/prompts"], found["curriculum/left_out"] = curriculum.pool(run_state.curriculum)
    return found


def _by_domain(sampled: Groups) -> dict[str, float]:
    """For each domain of a mixture: its share of the prompts, their mean reward, and the share that succeeded."""
    domains = np.array(sampled.batch.columns.get("domain", []))
    found: dict[str, float] = {}
    for name in dict.fromkeys(domains.tolist()) if all(sampled.batch.lacks) else ():
        among = domains == name
        figures = sampled.scored.base[among], sampled.scored.successes[among]
        reward, success = (float(np.nanmean(x)) if not np.isnan(x).all() else math.nan for x in figures)
        found |= {
            f"domains/{name}/{what}": value for what, value in (("reward", reward), ("success", success))
        }
        found[f"domains/{name}/share"] = float(among.mean())
    return found


def _learning_rate(components: Components, done: int) -> dict[str, float]:
    """The learning rate of the step's last update; unknown if the caller gave an optimizer."""
    if components.schedule is None:
        return {}
    return {"learning_rate": float(components.schedule(done * components.learner.passes.updates - 1))}


def _compilations(components: Components) -> dict[str, int]:
    """Compilations by program, summed over the stages: a stage with other lengths or group sizes adds some."""
    counts: Counter[str] = Counter()
    for stage in {id(stage): stage for stage in components.stages}.values():
        counts += Counter({"rollout": stage.sampler.compilations, **stage.learner.compilations()})
    return {name: counts[name] for name in ("rollout", *components.learner.compilations())}


def evaluation_metrics(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """The summary of an evaluation under `eval/`; empty without held-out prompts."""
    return {} if evaluation is None else {f"eval/{k}": v for k, v in evaluation["summary"].items()}


def summarize(
    steps: int, run_state: RunState, after: Mapping[str, Any] | None, prompts_dropped: int
) -> dict[str, Any]:
    """The content of `summary.json`."""
    memory, source = peak_memory()
    return {
        "before": run_state.before and run_state.before["summary"],
        "after": after and after["summary"],
        "steps": steps,
        "num_tokens": run_state.num_tokens,
        "seconds": run_state.seconds,
        "peak_memory": memory,
        "peak_memory_of": source,
        "prompts_dropped": prompts_dropped,
    }


def show(
    summary: dict[str, Any],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    folder: RunFolder,
    reflection: Reflection | None,
) -> None:
    """Print samples from before and after, the closing table, and the model's folder."""
    if before and after:
        sample_panel("Held-out samples before", _shown(before["samples"], reflection))
        sample_panel("Held-out samples after", _shown(after["samples"], reflection))
        closing_table(summary["before"], summary["after"], title="Held-out prompts")
    steps = f"{summary['steps']} {plural(summary['steps'], 'step')}"
    print(
        f"{steps}, {summary['num_tokens']} tokens, {summary['seconds']:.0f} s, peak memory "
        f"{summary['peak_memory'] / 2**30:.2f} GiB ({summary['peak_memory_of']})"
    )
    if folder.hf.exists():
        print(f"model: {folder.hf}")


def _shown(samples: list[dict[str, Any]], reflection: Reflection | None) -> list[dict[str, Any]]:
    """The first two samples, with the reflection in them."""
    if reflection is None:
        return samples[:2]
    words = lambda sample: ", ".join(reflection.categories(sample["completion"])) or "none"
    return [{**sample, "reflection": words(sample)} for sample in samples[:2]]
