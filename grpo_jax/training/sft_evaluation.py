"""Evaluates supervised fine-tuning on held-out rows: their perplexity, and samples of the model."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from grpo_jax.config import SFTConfig
from grpo_jax.config.prompts import PromptSettings
from grpo_jax.data.prompts import PromptBatch
from grpo_jax.data.sft.examples import Examples
from grpo_jax.learner.logprobs import LogprobSettings, make_rows
from grpo_jax.learner.update import make_score
from grpo_jax.models.transformer import Params
from grpo_jax.program import Program
from grpo_jax.rollout.protocol import Sampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.runs.files import write_atomically
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.status import current
from grpo_jax.setup.policy import Policy
from grpo_jax.setup.prompts import make_prompts
from grpo_jax.setup.sampling import RandomStream, make_sampler
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows

Row = dict[str, Any]


class HeldOut:
    """Perplexity of held-out completions, and samples for the first prompts. Holds data and programs, no state; call it
    inside the policy's mesh. UserError for rows that cannot be used."""

    def __init__(
        self,
        config: SFTConfig,
        policy: Policy,
        rows: Sequence[Row],
        examples: Examples,
        logprob_settings: LogprobSettings,
    ):
        self.config, self.policy, self.examples = config, policy, examples
        self._prompts = _prompts(config, policy, rows) if config.eval_samples else None
        micro_batches = config.rows_per_step // (config.micro_batch_size or config.rows_per_step)
        self._rows = Program("rows", make_rows)
        self._score = make_score(
            policy.cfg, replace(logprob_settings, entropy=False), micro_batches, policy.mesh
        )

    def __call__(self, params: Params) -> dict[str, Any]:
        """Of the whole model: `summary` (nll in nats a token, perplexity, rows, rows_dropped and rows_cut for their
        length, completion_tokens) and `samples`."""
        total, count = 0.0, 0
        for number, batch in enumerate(self.examples.batches_in_order(self.config.rows_per_step)):
            current().count(number * self.config.rows_per_step, len(self.examples), "rows")
            arrays = batch.prompts, batch.prompt_lengths, batch.completions, batch.mask
            placed = (hosts.put(x, by_rows(self.policy.mesh)) for x in arrays)
            found = np.asarray(hosts.get(self._score(params, self._rows(*placed))))
            total -= float(found.sum(dtype=np.float64))
            count += int(batch.completion_lengths.sum())
        summary = {
            "nll": total / count,
            "perplexity": perplexity(total / count),
            "rows": len(self.examples),
            "rows_dropped": self.examples.dropped,
            "rows_cut": self.examples.cut,
            "completion_tokens": count,
        }
        return {"summary": summary, "samples": self._samples(params)}

    def _samples(self, params: Params) -> list[dict[str, str]]:
        if self._prompts is None:
            return []
        batch, policy = self._prompts, self.policy
        drawn = self._sampler(policy.rollout_copy(params), batch, step=0)
        ids = [row[0, :n].tolist() for row, n in zip(drawn.tokens, drawn.lengths[:, 0])]
        texts = policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"prompt": p, "completion": c} for p, c in zip(batch.texts, texts)]

    @cached_property
    def _sampler(self) -> Sampler:
        return make_sampler(
            self.config,
            self.policy,
            num_generations=1,
            sampling=SamplingParams(self.config.eval_temperature),
            seed=self.config.seed,
            random_stream=RandomStream.EVALUATION,
        )


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood, at most the largest float."""
    return math.exp(min(nll, 80.0))


def save_samples(folder: RunFolder, done: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write `samples/samples_<step>.jsonl` atomically, one line per sample."""
    if folder.is_writer and samples:
        lines = "".join(json.dumps(dict(sample), ensure_ascii=False) + "\n" for sample in samples)
        write_atomically(folder.path / "samples" / f"samples_{done:05d}.jsonl", lines)


def _prompts(config: SFTConfig, policy: Policy, rows: Sequence[Row]) -> PromptBatch:
    """The first prompts that are short enough. If all are longer, the check of the rows has raised already."""
    settings = PromptSettings(
        max_prompt_length=config.max_length,
        system_prompt=config.system_prompt,
        chat_template_kwargs=config.chat_template_kwargs,
    )
    prompts = make_prompts(settings, policy, rows)
    batch, _ = next(prompts.batches_in_order(min(config.eval_samples, len(prompts))))
    width = batch.tokens.shape[1] + config.max_completion_length
    policy.check_positions("max_completion_length and a held-out prompt", width)
    return batch
