"""What came of a stage, in a few words, from what it left in its folder."""

import json
from pathlib import Path
from typing import Any

from grpo_jax.pipelines.stages import Stage


def in_words(stage: Stage) -> str:
    """`success 31 % -> 78 %`, `perplexity 4.1 -> 2.3`, `kept 120 of 512 samples`."""
    if stage.verb == "eval":
        return _evaluated(json.loads(Path(stage.outputs["results"]).read_text(encoding="utf-8")))
    file = Path(stage.folder) / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if stage.verb == "reject":
        return f"kept {summary['kept']} of {summary['samples']} samples"
    name, shape = ("perplexity", "{:.4g}") if stage.verb == "sft" else ("success", "{:.1%}")
    before, after = (summary.get(when) for when in ("before", "after"))
    if before and after:
        return f"{name} {shape.format(before[name])} -> {shape.format(after[name])}"
    return f"{summary.get('steps')} steps" + (f", nll {summary['nll']:.4g}" if "nll" in summary else "")


def _evaluated(results: dict[str, Any]) -> str:
    parts = [f"{way} {results[way]['success']:.1%}" for way in ("greedy", "sampled") if way in results]
    return "success: " + ", ".join(parts)
