"""What a step and a run say of themselves, gathered from every stage: metrics, the closing table."""

import math
from collections import Counter
from typing import Any

import numpy as np

from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.metrics import peak_memory, rollout_metrics, speed_metrics
from grpo_jax.runs.progress import closing_table, sample_panel
from grpo_jax.runs.run import Stopwatch
from grpo_jax.training.assembly import Stages
from grpo_jax.training.collector import Groups
from grpo_jax.training.reflection import Reflection


def step_metrics(
    stages: Stages, stage: int, sampled: Groups, clock: Stopwatch, notes: dict[str, Any], done: int
) -> dict[str, Any]:
    """A step's metrics besides the learner's own, of everything that was sampled in it; adds its tokens and seconds
    to the run's `notes`."""
    lesson = stages.lessons[stage]
    rollout, scored = sampled.rollout, sampled.scored
    P, G = rollout.lengths.shape
    tokens, seconds = int(rollout.lengths.sum()), clock.total()
    notes["num_tokens"] += tokens + G * int(sampled.batch.lengths.sum())
    notes["seconds"] += seconds
    names, weights = lesson.scorer.pool.names, lesson.scorer.weights
    return {
        **rollout_metrics(
            rollout.lengths, rollout.finished, scored.values.reshape(P * G, -1), names, weights
        ),
        **scored.failures,
        **scored.metrics,
        **(
            stages.reflection.metrics(scored.completions, rollout.lengths.ravel())
            if stages.reflection
            else {}
        ),
        **_course(stages, stage, notes["course"]),
        **_by_domain(sampled),
        **speed_metrics(seconds, tokens, notes["num_tokens"]),
        **clock.times,
        **{f"compilations/{name}": count for name, count in _compilations(stages).items()},
        "rollout_tokens_per_second": tokens / clock.times["time/rollout"],
        **_learning_rate(stages, done),
        "peak_memory": peak_memory()[0],
    }


def _course(stages: Stages, stage: int, noted: dict[str, Any]) -> dict[str, float]:
    """Where the course stands, where it has more than one way to go."""
    course = stages.course
    found: dict[str, float] = {}
    if len(course.stages) > 1:
        found["curriculum/stage"] = stage + 1
    if course.screens:
        found["curriculum/prompts"], found["curriculum/left_out"] = course.pool(course.standing(noted))
    return found


def _by_domain(sampled: Groups) -> dict[str, float]:
    """Of each domain of a mixture: its share of the prompts, their mean reward, and how many succeeded."""
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


def _learning_rate(stages: Stages, done: int) -> dict[str, float]:
    """That of the step's last update; unknown where the caller brought an optimizer."""
    if stages.schedule is None:
        return {}
    return {"learning_rate": float(stages.schedule(done * stages.learner.passes.updates - 1))}


def _compilations(stages: Stages) -> dict[str, int]:
    """Over all stages: each of its own lengths and group sizes adds to them when it begins."""
    counts: Counter[str] = Counter()
    for lesson in {id(lesson): lesson for lesson in stages.lessons}.values():
        counts += Counter({"rollout": lesson.sampler.compilations, **lesson.learner.compilations()})
    return {name: counts[name] for name in ("rollout", *stages.learner.compilations())}


def evaluation_metrics(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """A held-out summary under `eval/`; nothing without held-out prompts."""
    return {} if evaluation is None else {f"eval/{k}": v for k, v in evaluation["summary"].items()}


def summarize(steps: int, notes: dict[str, Any], prompts_dropped: int) -> dict[str, Any]:
    """What `summary.json` holds."""
    memory, where = peak_memory()
    return {
        "before": notes["before"] and notes["before"]["summary"],
        "after": notes["after"] and notes["after"]["summary"],
        "steps": steps,
        "num_tokens": notes["num_tokens"],
        "seconds": notes["seconds"],
        "peak_memory": memory,
        "peak_memory_of": where,
        "prompts_dropped": prompts_dropped,
    }


def show(
    summary: dict[str, Any], notes: dict[str, Any], folder: RunFolder, reflection: Reflection | None
) -> None:
    """The closing table, samples before and after, and where the model is."""
    if notes["before"] and notes["after"]:
        sample_panel("Held-out samples before", _shown(notes["before"]["samples"], reflection))
        sample_panel("Held-out samples after", _shown(notes["after"]["samples"], reflection))
        closing_table(summary["before"], summary["after"], title="Held-out prompts")
    print(
        f"{summary['steps']} steps, {summary['num_tokens']} tokens, {summary['seconds']:.0f} s, peak memory "
        f"{summary['peak_memory'] / 2**30:.2f} GiB ({summary['peak_memory_of']})"
    )
    if folder.hf.exists():
        print(f"model: {folder.hf}")


def _shown(samples: list[dict[str, Any]], reflection: Reflection | None) -> list[dict[str, Any]]:
    """The first two, with what they show of reflection."""
    if reflection is None:
        return samples[:2]
    words = lambda sample: ", ".join(reflection.categories(sample["completion"])) or "none"
    return [{**sample, "reflection": words(sample)} for sample in samples[:2]]
