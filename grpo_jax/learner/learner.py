"""The learner as the trainer uses it: takes a rollout and its advantages, returns the updated state."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from grpo_jax.errors import UserError
from grpo_jax.learner.adapter_dropout import AdapterDropout
from grpo_jax.learner.batches import MiniBatch, Passes, bucket, minibatches
from grpo_jax.learner.divergences import ESTIMATORS
from grpo_jax.learner.groups import SampledGroups
from grpo_jax.learner.logprobs import LogprobSettings, Rows, make_rows
from grpo_jax.learner.objective import GRPO, Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state, init_state, state_shardings
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.update import make_score, make_update, read, sharing_error
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.lora import Base, LoRA, joined
from grpo_jax.models.transformer import Params, abstract_trained, cast
from grpo_jax.program import Program
from grpo_jax.sharding import hosts
from grpo_jax.sharding.memory import matrices_on_host
from grpo_jax.sharding.mesh import by_rows, everywhere, row_shards

_SHARING_ERROR = {"float32": 1e-3, "bfloat16": 5e-2}  # nats on average: what rounding may do


class Learner:
    """GRPO updates for rollouts of `prompts` prompts with `samples` completions. Holds the compiled programs, the
    reference and the frozen base weights, but no train state."""

    def __init__(
        self,
        *,
        cfg: ModelConfig,
        objective: GRPO,
        logprob_settings: LogprobSettings,
        optimizer: optax.GradientTransformation,
        passes: Passes,
        shape: tuple[int, int],
        mesh: Mesh,
        lora: LoRA | None = None,
        reference_on_host: bool = False,
        sync: ReferenceSync | None = None,
        dropout: AdapterDropout | None = None,
    ):
        self.cfg, self.objective, self.passes, self.mesh = cfg, objective, passes, mesh
        weights, bonus = abstract_trained(cfg, lora), objective.bonus
        self.shardings = state_shardings(weights, optimizer, mesh, bonus, sync)
        self.abstract_state = abstract_state(weights, optimizer, mesh, bonus, sync)
        self._reference_on_host = reference_on_host
        self.micro_batches = passes.micro_batches(passes.rows(*shape))
        self.init = Program(  # the weights are donated, not copied
            "init",
            partial(init_state, optimizer=optimizer, bonus=bonus, sync=sync),
            donate_argnums=0,
            out_shardings=self.shardings,
        )
        self.rows = Program("rows", make_rows)
        rows = passes.rows(*shape) // passes.num_minibatches // self.micro_batches
        self.rows_together = passes.alike(shape[1], rows, row_shards(mesh))
        logprob_settings = self.logprob_settings = replace(logprob_settings, group=self.rows_together)
        self.update = make_update(
            cfg,
            objective,
            logprob_settings,
            optimizer,
            self.micro_batches,
            self.shardings,
            mesh,
            sync,
            dropout,
        )
        self.score = make_score(cfg, logprob_settings, self.micro_batches, mesh)
        whole = _parts(shape[0] * shape[1], rows, row_shards(mesh))
        plain = replace(logprob_settings, group=1)
        self.score_rollout = make_score(cfg, plain, whole, mesh)  # the rows without gradient too
        compare = partial(sharing_error, cfg, logprob_settings, self.micro_batches)
        self.sharing_error = Program("check", compare, out_shardings=everywhere(mesh))
        self._checked = False
        self.base: Base | None = None  # the frozen weights beside adapters
        self.reference: Params | None = None

    @property
    def skips(self) -> bool:
        """Whether micro-batches of rows with advantage 0 are left out."""
        wanted = self.passes.skip_zero_advantages and self.micro_batches > 1
        seen = self.logprob_settings.entropy  # what is logged is of every row
        return wanted and self.objective.ignores_zero_advantages and not seen

    @property
    def widths(self) -> int:
        """How many ends the batches have, at most; 0: they need none."""
        return self.passes.length_buckets if self.skips or self.passes.length_buckets > 1 else 0

    def whole(self, trained: Params) -> Params:
        """The whole model: the trained weights, or the base with the trained adapters."""
        return joined(trained, self.base)

    def set_reference(self, params: Params) -> None:
        """Copy the trained `params` in the compute dtype as the reference of the divergence. With adapters the copy
        is small: the reference shares the frozen base."""
        dtype, layout = jnp.dtype(self.logprob_settings.dtype), self.reference_shardings
        copy = Program("reference", lambda p: cast(jax.tree.map(jnp.copy, p), dtype), out_shardings=layout)
        self.reference = copy(params)

    @property
    def reference_shardings(self) -> Params:
        """Shardings of the reference: those of the trained weights, on the devices or in host memory."""
        weights = self.shardings.params
        return matrices_on_host(weights) if self._reference_on_host else weights

    def __call__(
        self, state: TrainState, groups: SampledGroups, advantages: np.ndarray
    ) -> tuple[TrainState, dict[str, float]]:
        """All updates of one rollout with advantages [P,G], [P,G,1] or [P,G,Tc]; `state` is donated.

        Returns the state and the step's metrics.
        """
        parts = minibatches(
            groups, advantages, self.passes, skip=self.skips, rows_together=self.rows_together
        )
        batches = [self.on_devices(part) for part in parts]
        if self.rows_together > 1 and not self._checked:
            self._check_sharing(self.whole(state.params), batches[0].rows)
        reference = self.reference if state.reference is None else state.reference
        if reference is not None and self.objective.beta > 0:
            batches = self._with("ref_logprobs", self.whole(reference), batches)
        if self.passes.updates > 1:
            batches = self._with("old_logprobs", self.whole(state.params), batches)
        history = []
        for _ in range(self.passes.num_iterations):
            for batch in batches:
                state, metrics = self.update(state, batch, self.base)
                history.append(metrics)
        return state, _combine([read(metrics) for metrics in history])

    def _check_sharing(self, params: Params, rows: Rows) -> None:
        """UserError where a prompt computed once for its group gives other log-probs than the plain form."""
        self._checked = True
        error, most = (
            float(hosts.get(self.sharing_error(params, rows))),
            _SHARING_ERROR[self.logprob_settings.dtype],
        )
        if not error <= most:
            raise UserError(
                f"share_prompts = true: log-probs differ by {error:.2g} nats a token from those of whole rows, more "
                f"than {most:g}; nothing was updated. Set share_prompts to false, and report it: it is a fault"
            )

    def divergence(self, groups: SampledGroups, reference: Params | None = None) -> np.ndarray:
        """The divergence of every token that the policy chose from the `reference`, by default the learner's own:
        [P,G,Tc] float32, 0 elsewhere, for a penalty in the reward. By the log-probs that the sampler recorded: they
        cost nothing, and it is the sampler's distribution that the completions come from."""
        prompts, rollout = groups.batch, groups.rollout
        P, G, Tc = rollout.tokens.shape
        width = bucket(int(rollout.lengths.max()), Tc)
        flat = lambda x: np.asarray(x[..., :width]).reshape(P * G, width)
        mask = flat(rollout.action_mask).astype(np.float32)
        repeated = np.repeat(prompts.tokens, G, axis=0), np.repeat(prompts.lengths, G, axis=0)
        rows = self._rows(*repeated, flat(rollout.tokens), mask)
        reference = self.reference if reference is None else reference
        assert reference is not None
        scored = hosts.get(self.score_rollout(self.whole(reference), rows))
        estimate = ESTIMATORS[self.objective.kl_estimator](
            jnp.asarray(flat(rollout.logprobs)), jnp.asarray(scored), jnp.asarray(mask)
        )
        found = np.asarray(estimate)
        return np.pad(found, [(0, 0), (0, Tc - width)]).reshape(P, G, Tc)

    def on_devices(self, part: MiniBatch) -> Batch:
        """A mini-batch on the devices, sharded as the update expects."""
        put = lambda x: hosts.put(x, by_rows(self.mesh))
        scalar = lambda x: hosts.put(x, everywhere(self.mesh))
        return Batch(
            self._rows(part.prompts, part.prompt_lengths, part.tokens, part.mask),
            put(part.advantages),
            sampler_logprobs=put(part.logprobs),
            on_policy=None if part.on_policy is None else put(part.on_policy),
            mean_tokens=scalar(part.mean_tokens),
            ends=scalar(part.ends) if self.widths else None,
        )

    def _rows(self, *arrays: np.ndarray) -> Rows:
        """Rows [B,Tp+Tc] of prompts [B,Tp], their lengths [B], completions and mask [B,Tc]."""
        return self.rows(*(hosts.put(x, by_rows(self.mesh)) for x in arrays))

    def _with(self, field: str, params: Params, batches: list[Batch]) -> list[Batch]:
        changed: list[Any] = [{field: self.score(params, batch.rows, batch.ends)} for batch in batches]
        return [replace(batch, **change) for batch, change in zip(batches, changed)]

    def compilations(self) -> dict[str, int]:
        """How often each program was compiled."""
        return {program.name: program.compilations for program in (self.rows, self.score, self.update)}


def _parts(rows: int, micro_batch_size: int, shards: int) -> int:
    """Into how many equal parts of at most `micro_batch_size` rows `rows` divide, each over all shards."""
    fits = lambda n: rows % n == 0 and rows // n % shards == 0 and rows // n <= micro_batch_size
    return next((n for n in range(1, rows + 1) if fits(n)), max(rows // shards, 1))


def _combine(history: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of a rollout from those of its updates: means, and minima and maxima of extremes; the sampler's metrics
    from the first update, before the weights change; the entropy bonus's coefficient from the last."""
    combined = {name: float(np.mean([metrics[name] for metrics in history])) for name in history[0]}
    for name in history[0]:
        values = [metrics[name] for metrics in history]
        if name.startswith("sampling/"):
            combined[name] = values[0]
        elif name.endswith("_min") or name.endswith("_max"):
            combined[name] = min(values) if name.endswith("_min") else max(values)
        elif name == "entropy_coef":
            combined[name] = values[-1]
    return combined
