"""Rejection sampling, the verb `reject`: prompts -> samples -> rewards -> rows for `sft`.

    output_dir/pieces/piece_00000.jsonl  every sample of some prompts, with its rewards
    output_dir/rows.jsonl                prompt, completion and provenance of the samples that are kept
    output_dir/summary.json              how many samples are kept, and why the others are not

A piece is written atomically, and its samples depend only on the seed and their prompts: a command that was killed
continues after the last piece, and ends with the same bytes.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from grpo_jax.config.reject import RejectConfig
from grpo_jax.data.chat import as_asked
from grpo_jax.data.prompts import PromptBatch, Prompts
from grpo_jax.data.sft.rejection import Candidate, Standards, select
from grpo_jax.data.sources import load_rows
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.rollout.protocol import Rollout, Sampler
from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.progress import TrainingProgress
from grpo_jax.runs.run import open_together
from grpo_jax.scoring.make_scorer import open_scorer
from grpo_jax.scoring.reward_models import find_reward_models
from grpo_jax.scoring.sample_and_score import sample_and_score
from grpo_jax.scoring.scored import Scored
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.rejection import standards_of
from grpo_jax.setup.run import fingerprint_of
from grpo_jax.setup.sampling import RandomStream, make_sampler
from grpo_jax.setup.status import with_status
from grpo_jax.setup.weights import load_sampler
from grpo_jax.sharding import hosts


@with_status
def reject_command(config: RejectConfig) -> int:
    """The verb `reject`: sample the missing pieces, then select, write and report."""
    found = find_reward_models(config.rewards)
    policy = open_policy(config, rollout_weights=config.rollout_weights, rollout_cache=config.rollout_cache)
    tokens = config.max_prompt_length + config.max_completion_length
    policy.check_positions("max_prompt_length + max_completion_length", tokens)
    rows = load_rows(config.dataset, config.dataset_split, seed=config.seed)[: config.prompts or None]
    prompts = make_prompts(config, policy, rows)
    with open_scorer(config, policy, prompts, found) as scorer:
        standards = standards_of(config, scorer.pool.names)
        with open_together(
            config.output_dir,
            config.model_dump(mode="json"),
            fingerprint_of(policy) | scorer.fingerprint | {"prompts": prompts.digest},
            is_writer=hosts.is_writer(),
        ) as folder:
            _sample(config, policy, prompts, scorer, folder)
            if hosts.is_writer():
                _show(_select(config, folder, standards, prompts), folder)
    return 0


# ---- sampling ----


def _sample(
    config: RejectConfig, policy: Policy, prompts: Prompts, scorer: Scorer, folder: RunFolder
) -> None:
    """Write every piece that is missing. Collective."""
    batches = list(prompts.batches_in_order(config.prompts_per_step))
    missing = [i for i in range(len(batches)) if not _exists(folder, i)]
    if not missing:
        return
    origin, sampler = provenance(config, policy), _sampler(config, policy)
    first = len(batches) - len(missing)
    silent = not folder.is_writer
    with jax.set_mesh(policy.mesh), TrainingProgress(len(batches), first, silent=silent) as progress:
        weights = load_sampler(policy)
        for done, i in enumerate(missing, start=first + 1):
            batch, real = batches[i]
            rollout, scored = sample_and_score(sampler, scorer, weights, batch, real=real)
            if folder.is_writer:
                lines = _candidates(config, batch, real, rollout, scored, scorer.pool.names, origin)
                write_atomically(_piece(folder, i), "".join(json.dumps(line) + "\n" for line in lines))
            progress.log(done, _metrics(rollout, scored, real))


def _sampler(config: RejectConfig, policy: Policy) -> Sampler:
    return make_sampler(
        config,
        policy,
        num_generations=config.samples,
        seed=config.seed,
        random_stream=RandomStream.REJECTION,
    )


def _piece(folder: RunFolder, number: int) -> epath.Path:
    return folder.path / "pieces" / f"piece_{number:05d}.jsonl"


def _exists(folder: RunFolder, number: int) -> bool:
    return hosts.any_process(folder.is_writer and _piece(folder, number).exists())


def _metrics(rollout: Rollout, scored: Scored, real: int) -> dict[str, float]:
    base = scored.base[:real]
    mean = float(np.nanmean(base)) if not np.isnan(base).all() else float("nan")
    return {"reward": mean, "completions/mean_length": float(rollout.chosen[:real].mean())}


def _candidates(
    config: RejectConfig,
    batch: PromptBatch,
    real: int,
    rollout: Rollout,
    scored: Scored,
    names: list[str],
    origin: dict[str, Any],
) -> Iterator[Candidate]:
    """The samples of the first `real` prompts, in order."""
    for p in range(real):
        # With the system prompt and the prefill, so that `sft` needs no settings to read the same prompt.
        prompt = as_asked(batch.prompts[p], config.system_prompt, config.prefill)
        for g in range(config.samples):
            values = scored.values[p, g]
            tokens = int(rollout.lengths[p, g])
            rewards = {name: None if np.isnan(v) else float(v) for name, v in zip(names, values)}
            yield {
                "prompt": prompt,
                "text": batch.texts[p],
                "completion": scored.completions[p * config.samples + g],
                "finished": bool(rollout.finished[p, g]),
                "tokens": tokens,
                "rewards": rewards,
                "provenance": origin
                | {"uid": int(batch.uids[p]), "sample": g, "tokens": tokens, "rewards": rewards},
            }


def provenance(config: RejectConfig, policy: Policy) -> dict[str, Any]:
    """The provenance that all samples of a command share: the model (and its run and step, if it is the result of a
    run), the data, the sampling."""
    run: dict[str, Any] = {}
    home = RunFolder(Path(policy.folder).parent)
    if home.run_file.exists() and (summary := home.summary()):
        run = {"run": str(home.path), "step": summary.get("steps")}
    return {
        "model": config.model,
        "weights": sampled_digest(policy.folder)[:16],
        **run,
        "dataset": config.dataset,
        "split": config.dataset_split,
        "seed": config.seed,
        "temperature": config.temperature,
    }


# ---- selecting ----


def _select(
    config: RejectConfig, folder: RunFolder, standards: Standards, prompts: Prompts
) -> dict[str, Any]:
    """Write the samples of all pieces that are kept, and the summary, which is returned."""
    pieces = math.ceil(len(prompts) / config.prompts_per_step)
    candidates = [
        json.loads(line)
        for number in range(pieces)
        for line in _piece(folder, number).read_text().splitlines()
    ]
    kept, dropped = select(candidates, standards)
    rows = [{name: one[name] for name in ("prompt", "completion", "provenance")} for one in kept]
    write_atomically(folder.path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "prompts": len(prompts),
        "prompts_dropped": prompts.dropped,
        "samples": len(candidates),
        "kept": len(kept),
        "prompts_kept": len({one["text"] for one in kept}),
        "dropped": dropped,
    }
    folder.write_summary(summary)
    return summary


def _show(summary: dict[str, Any], folder: RunFolder) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "samples", "share", title="Rejection sampling")
    for name, count in [("kept", summary["kept"]), *summary["dropped"].items(), ("all", summary["samples"])]:
        table.add_row(name, str(count), f"{100 * count / summary['samples']:.1f} %")
    Console().print(table)
    too_long = f"{summary['prompts_dropped']} prompts were too long, left out"
    print(f"{summary['prompts_kept']} of {summary['prompts']} prompts have a row; {too_long}")
    if not summary["kept"]:
        print("rows: none: nothing passed; a lower threshold, more samples or a better model may help")
    print(f"rows: {folder.path / 'rows.jsonl'}")
