"""This project, measured: the sampler and the learner as `grpo-jax train` puts them together."""

import inspect
import math
import os
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import work
from serving import Line, main, serve
from words import make_tokenizer, reward

import grpo_jax
from grpo_jax.config import GRPOConfig
from grpo_jax.learner.advantages import group_advantages
from grpo_jax.learner.batches import Passes, minibatches
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models import hf
from grpo_jax.rollout.programs import Rollout, Vocabulary
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.sharding.mesh import make_mesh


class Ours:
    """The stages of a step on given rows."""

    def __init__(self, spec: dict[str, Any], mesh: Any):
        self.work, self.given = work.load(spec)
        self.settings, self.variant, self.mesh = spec["settings"], spec["variant"], mesh
        self.cfg = hf.load_config(spec["model"])
        self.tokenizer = make_tokenizer(self.cfg.vocab_size)
        self.passes = Passes(micro_batch_size=self.settings["micro_batch_size"])
        self.learner = self._learner()
        weights = hf.load_params(spec["model"], self.cfg, self.learner.shardings.params, "float32")
        self.learner.set_reference(weights)
        self.state = self.learner.init(weights)
        self.sampler, self.draws = self._sampler(), 0
        self.groups = self._groups()
        (part,) = minibatches(self.groups, self.given["advantages"], self.passes, skip=False)
        self.batch = self.learner.on_devices(part)

    def _learner(self) -> Learner:
        """Entropy is computed, which this project leaves out unless asked: the others always compute it."""
        s = self.settings
        objective = GRPO("grpo", beta=s["beta"], use_bias_correction_kl=False)
        logprob_settings = LogprobSettings(
            remat="full" if s["gradient_checkpointing"] else "dots", entropy=True
        )
        optimizer = make_optimizer(Schedule(s["learning_rate"], "constant", 0, 1))
        shape = self.work.prompts, self.work.samples
        return Learner(
            cfg=self.cfg,
            objective=objective,
            logprob_settings=logprob_settings,
            optimizer=optimizer,
            passes=self.passes,
            shape=shape,
            mesh=self.mesh,
        )

    def _sampler(self) -> ContinuousBatchingSampler:
        repeated = self.variant.get("repeat_prompts", False)
        return ContinuousBatchingSampler(
            self.cfg,
            Vocabulary((), 0, self.cfg.vocab_size),
            SamplingParams(),
            num_generations=1 if repeated else self.work.samples,
            max_completion_length=self.work.completion_length,
            mesh=self.mesh,
            seed=0,
            segment=self.variant.get("segment", GRPOConfig.model_fields["rollout_segment"].default),
        )

    def _groups(self) -> Any:
        """The given rows as if they had been sampled."""
        x = self.given
        prompt_lengths = np.full(self.work.prompts, self.work.prompt_length, np.int32)
        logprobs, finished = np.zeros(x["completions"].shape, np.float32), np.ones(x["lengths"].shape, bool)
        prompts = SimpleNamespace(tokens=x["prompts"], lengths=prompt_lengths)
        return SimpleNamespace(
            batch=prompts, rollout=Rollout.of_policy(x["completions"], logprobs, x["lengths"], finished)
        )

    def sample(self) -> Any:
        """One rollout, on the host."""
        prompts, limits = self.given["prompts"], self.given["lengths"]
        if self.variant.get("repeat_prompts"):
            prompts, limits = np.repeat(prompts, self.work.samples, axis=0), limits.reshape(-1, 1)
        widths = np.full(len(prompts), self.work.prompt_length, np.int32)
        uids = np.arange(len(prompts), dtype=np.uint32)
        self.draws += 1
        batch = SimpleNamespace(tokens=prompts, lengths=widths, uids=uids)
        return self.sampler(self.state.params, batch, step=self.draws, **self._limits(limits))

    def _limits(self, limits: np.ndarray) -> dict[str, np.ndarray]:
        if not self.work.long_rows:
            return {}
        if "limits" not in inspect.signature(self.sampler.__call__).parameters:
            raise NotImplementedError("this version's Sampler takes no limit for each row (`limits`)")
        return {"limits": limits}

    def rollout(self) -> int:
        return int(np.asarray(self.sample().lengths).sum())

    def score(self) -> None:
        jax.block_until_ready(self.learner.score(self.state.params, self.batch.rows))

    def update(self) -> None:
        """Reference log-probs, loss, gradient, AdamW."""
        self.state, _ = self.learner(self.state, self.groups, self.given["advantages"])
        jax.block_until_ready(self.state.params)

    def step(self) -> int:
        """Rollout, text, rewards, advantages, update."""
        drawn = self.sample()
        flat = np.asarray(drawn.tokens).reshape(self.work.rows, -1)
        rewards = np.array(reward(self.tokenizer.batch_decode(flat))).reshape(drawn.lengths.shape)
        sampled = SimpleNamespace(batch=self.groups.batch, rollout=drawn)
        self.state, _ = self.learner(self.state, sampled, group_advantages(rewards))
        jax.block_until_ready(self.state.params)
        return int(np.asarray(drawn.lengths).sum())

    def check(self, file: str) -> None:
        found = np.asarray(self.learner.score(self.state.params, self.batch.rows))
        np.save(file, found)


def build(line: Line, spec: dict[str, Any]) -> None:
    threads = len(os.sched_getaffinity(0))
    # A device a core, each with rows of its own: a core never waits for another within a product of matrices.
    jax.config.update("jax_num_cpu_devices", threads)
    parts = math.gcd(threads, math.gcd(work.load(spec)[0].prompts, spec["settings"]["micro_batch_size"]))
    mesh = make_mesh({"data": parts})
    with jax.set_mesh(mesh):
        system = Ours(spec, mesh)
        actions = {name: getattr(system, name) for name in work.MEASURES}
        versions = {"grpo_jax": grpo_jax.__version__, "jax": jax.__version__}
        serve(line, actions, system.check, versions=versions, threads=threads, devices=parts)


if __name__ == "__main__":
    main(build)
