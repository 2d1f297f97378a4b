"""Google Tunix, measured: its GRPO learner on its cluster with the vanilla sampler, all roles on one device.

A step is one turn of `GRPOLearner.train`'s loop. An update is what that loop does once rows are sampled: log-probs of
the reference, then `update_actor` for each micro-batch.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work
from flax import nnx
from serving import Line, main, serve
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2.params import create_model_from_safe_tensors
from tunix.rl import rl_cluster as clusters
from tunix.rl import utils as rl_utils
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner, TrainExample
from tunix.rl.rollout.base_rollout import RolloutConfig
from words import make_tokenizer, reward, text

NEVER = -1  # an id that no model draws


def model_config(folder: Path, gradient_checkpointing: bool) -> qwen2.ModelConfig:
    """Tunix's shape of the model in `folder`; it reads no config.json itself."""
    cfg = json.loads((folder / "config.json").read_text())
    heads = cfg["num_attention_heads"]
    return qwen2.ModelConfig(
        num_layers=cfg["num_hidden_layers"],
        vocab_size=cfg["vocab_size"],
        embed_dim=cfg["hidden_size"],
        hidden_dim=cfg["intermediate_size"],
        num_heads=heads,
        head_dim=cfg.get("head_dim") or cfg["hidden_size"] // heads,
        num_kv_heads=cfg["num_key_value_heads"],
        rope_theta=_rope_theta(cfg),
        norm_eps=cfg["rms_norm_eps"],
        use_tied_embedding=cfg["tie_word_embeddings"],
        remat_config=qwen2.RematConfig.DECODER if gradient_checkpointing else qwen2.RematConfig.NONE,
    )


def _rope_theta(cfg: dict[str, Any]) -> int:
    """Older and newer files keep it in different places."""
    return int(cfg.get("rope_theta") or cfg["rope_parameters"]["rope_theta"])


class Theirs:
    """The learner and what it is measured on."""

    def __init__(self, spec: dict[str, Any]):
        self.work, self.given = work.load(spec)
        self.settings, self.folder = spec["settings"], Path(spec["model"])
        self.mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        self.config = model_config(self.folder, self.settings["gradient_checkpointing"])
        self.tokenizer = make_tokenizer(self.config.vocab_size)
        self.micro_rows = self.settings["micro_batch_size"]
        self.cluster = self._cluster()
        self.learner = self._learner()
        self.texts = [text(row) for row in self.given["prompts"]]
        self.prompts = jnp.asarray(np.repeat(self.given["prompts"], self.work.samples, axis=0))
        self.completions = jnp.asarray(self.given["completions"].reshape(self.work.rows, -1))

    def _model(self) -> nnx.Module:
        return create_model_from_safe_tensors(str(self.folder), self.config, self.mesh, dtype=jnp.float32)

    def _cluster(self) -> clusters.RLCluster:
        w = self.work
        rollout = RolloutConfig(
            max_tokens_to_generate=w.completion_length,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            max_prompt_length=w.prompt_length,
            kv_cache_size=w.prompt_length + w.completion_length,  # just what is needed
            eos_tokens=[NEVER],
        )
        roles = (clusters.Role.ACTOR, clusters.Role.ROLLOUT, clusters.Role.REFERENCE)
        return clusters.RLCluster(
            actor=self._model(),
            reference=self._model(),
            tokenizer=self.tokenizer,
            cluster_config=clusters.ClusterConfig(
                role_to_mesh=dict.fromkeys(roles, self.mesh),
                training_config=self._training(),
                rollout_config=rollout,
            ),
        )

    def _training(self) -> clusters.RLTrainingConfig:
        """Batch sizes count prompts here: a micro-batch has the rows of whole prompts."""
        micro = max(self.micro_rows // self.work.samples, 1)
        self.micro_rows = micro * self.work.samples
        optimizer = optax.adamw(self.settings["learning_rate"], 0.9, 0.999, 1e-8, weight_decay=0.0)
        return clusters.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optimizer),
            eval_every_n_steps=10**9,
            mini_batch_size=self.work.prompts,
            train_micro_batch_size=micro,
            rollout_micro_batch_size=self.work.prompts,
            compute_logps_micro_batch_size=micro,
        )

    def _learner(self) -> GRPOLearner:
        config = GRPOConfig(
            num_generations=self.work.samples,
            beta=self.settings["beta"],
            kl_loss_mode="low_var_kl",
            epsilon=0.2,
        )
        return GRPOLearner(self.cluster, config, reward_fns=self._reward)

    @staticmethod
    def _reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return reward(completions)

    def rollout(self) -> int:
        prompts = [prompt for prompt in self.texts for _ in range(self.work.samples)]
        found = self.cluster.generate(prompts=prompts, micro_batch_size=self.work.rows)
        limits = self.given["lengths"].ravel()
        return sum(min(len(row), int(limit)) for row, limit in zip(found.tokens, limits, strict=True))

    def reference_logprobs(self) -> jax.Array:
        rollout = self.cluster.rollout
        return self.cluster.get_ref_per_token_logps(
            self.prompts, self.completions, rollout.pad_id(), rollout.eos_id(), self.micro_rows
        )

    def score(self) -> None:
        jax.block_until_ready(self.reference_logprobs())

    def update(self) -> None:
        mask = np.arange(self.work.completion_length) < self.given["lengths"].reshape(-1, 1)
        examples = TrainExample(
            prompt_ids=self.prompts,
            prompt_mask=jnp.ones_like(self.prompts, bool),
            completion_ids=self.completions,
            completion_mask=jnp.asarray(mask),
            advantages=jnp.asarray(self.given["advantages"].ravel()),
            ref_per_token_logps=self.reference_logprobs(),
            old_per_token_logps=None,
        )
        for first in range(0, self.work.rows, self.micro_rows):
            part = rl_utils.get_batch_slice(examples, slice(first, first + self.micro_rows))
            self.cluster.update_actor([part], None)
        self._finish()

    def step(self) -> int:
        config = self.cluster.cluster_config.training_config
        micro, count = config.train_micro_batch_size, self.work.prompts
        parts = [{"prompts": np.array(self.texts[i : i + micro])} for i in range(0, count, micro)]
        self.learner._iter_steps = self.cluster.actor_trainer.iter_steps
        self.learner._last_iter_step = 0  # nothing to skip: this is no resumed run
        self.learner._run_global_step(count, count, count, len(parts), iter(parts), None, False)
        self._finish()
        return work.tokens(self.work, "step")

    def _finish(self) -> None:
        """The end of a turn of the learner's loop, when the weights are there."""
        if self.learner.should_sync_weights:
            self.cluster.sync_weights()
        else:
            self.cluster.global_steps += 1
        jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))

    def check(self, file: str) -> None:
        np.save(file, np.asarray(self.reference_logprobs()))


def build(line: Line, spec: dict[str, Any]) -> None:
    system = Theirs(spec)
    actions = {name: getattr(system, name) for name in work.MEASURES}
    versions = {name: version(name) for name in ("google-tunix", "jax", "flax")}
    threads = len(os.sched_getaffinity(0))  # XLA takes one a core
    facts = {"versions": versions, "threads": threads, "micro_batch_size": system.micro_rows}
    serve(line, actions, system.check, **facts)


if __name__ == "__main__":
    main(build)
