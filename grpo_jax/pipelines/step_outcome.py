"""The outcome of a step in a few words, from the files that it wrote."""

import json
from pathlib import Path
from typing import Any

from grpo_jax.pipelines.steps import Step


def in_words(step: Step) -> str:
    """Such as `success 31 % -> 78 %`, `perplexity 4.1 -> 2.3` or `kept 120 of 512 samples`."""
    if step.verb == "eval":
        return _evaluated(json.loads(Path(step.outputs["results"]).read_text(encoding="utf-8")))
    file = Path(step.folder) / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if step.verb == "reject":
        return f"kept {summary['kept']} of {summary['samples']} samples"
    name, shape = ("perplexity", "{:.4g}") if step.verb == "sft" else ("success", "{:.1%}")
    before, after = (summary.get(when) for when in ("before", "after"))
    if before and after:
        return f"{name} {shape.format(before[name])} -> {shape.format(after[name])}"
    return f"{summary.get('steps')} steps" + (f", nll {summary['nll']:.4g}" if "nll" in summary else "")


def _evaluated(results: dict[str, Any]) -> str:
    parts = [f"{way} {results[way]['success']:.1%}" for way in ("greedy", "sampled") if way in results]
    return "success: " + ", ".join(parts)
