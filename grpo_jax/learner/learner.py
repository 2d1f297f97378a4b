"""The learner as the trainer uses it: a rollout and its advantages in, a better state out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from grpo_jax.learner.logprobs import Scoring, make_rows
from grpo_jax.learner.objective import GRPO, Batch
from grpo_jax.learner.optimizer import TrainState, abstract_state, init_state, state_shardings
from grpo_jax.learner.update import make_score, make_update, read, split
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, abstract_params, cast
from grpo_jax.programs import Program
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows

_SHORTEST = 16  # completions are cut to the smallest power of two that holds the longest, from here up


@dataclass(frozen=True)
class Passes:
    """How a rollout of B rows becomes optimizer updates."""

    num_iterations: int = 1
    num_minibatches: int = 1
    micro_batch_size: int = 0  # rows; 0: the whole mini-batch

    @property
    def updates(self) -> int:
        """Optimizer updates a rollout."""
        return self.num_iterations * self.num_minibatches

    def micro_batches(self, rows: int) -> int:
        """Micro-batches in a mini-batch of a rollout of `rows` rows."""
        mini = rows // self.num_minibatches
        return mini // (self.micro_batch_size or mini)


class Learner:
    """GRPO updates for rollouts of a fixed number of rows. Holds programs and the reference, no state."""

    def __init__(
        self,
        cfg: ModelConfig,
        objective: GRPO,
        how: Scoring,
        optimizer: optax.GradientTransformation,
        passes: Passes,
        rows: int,
        mesh: Mesh,
    ):
        self.cfg, self.objective, self.how, self.passes, self.mesh = cfg, objective, how, passes, mesh
        self.shardings = state_shardings(abstract_params(cfg), optimizer, mesh)
        self.abstract_state = abstract_state(abstract_params(cfg), optimizer, mesh)
        micro_batches = passes.micro_batches(rows)
        self.init = Program(  # the weights are taken over, not copied
            "init", partial(init_state, optimizer=optimizer), donate_argnums=0, out_shardings=self.shardings
        )
        self.batches = Program("batches", partial(_batches, passes.num_minibatches))
        self.update = make_update(cfg, objective, how, optimizer, micro_batches, self.shardings, mesh)
        self.score = make_score(cfg, replace(how, entropy=False), micro_batches, mesh)
        self.reference: Params | None = None

    def set_reference(self, params: Params) -> None:
        """Keep a copy of `params` in the compute dtype as the reference of the KL term (beta > 0 only)."""
        dtype = jnp.dtype(self.how.dtype)
        copy = Program("reference", lambda p: cast(jax.tree.map(jnp.copy, p), dtype))
        self.reference = copy(params)

    def __call__(
        self, state: TrainState, tokens: np.ndarray, lengths: np.ndarray, rollout, advantages: np.ndarray
    ) -> tuple[TrainState, dict[str, float]]:
        """All updates of one rollout; `state` is donated.

        tokens [P,Tp] and lengths [P] are the prompts, `rollout` the sampler's (tokens, logprobs [P,G,Tc], lengths
        [P,G]) cut to a bucket by `trim`, advantages [P,G] float32. Returns the state and the step's metrics.
        """
        put = lambda x: hosts.put(x, by_rows(self.mesh))
        batches = self.batches(put(tokens), put(lengths), *rollout, put(advantages))
        if self.reference is not None:
            batches = self._with("ref_logprobs", self.reference, batches)
        if self.passes.updates > 1:
            batches = self._with("old_logprobs", state.params, batches)
        history = []
        for _ in range(self.passes.num_iterations):
            for batch in batches:
                state, metrics = self.update(state, batch)
                history.append(metrics)
        return state, _combine([read(metrics) for metrics in history])

    def _with(self, field: str, params: Params, batches: list[Batch]) -> list[Batch]:
        return [replace(batch, **{field: self.score(params, batch.rows)}) for batch in batches]

    def compilations(self) -> dict[str, int]:
        """How often each program was compiled."""
        return {program.name: program.compilations for program in (self.batches, self.score, self.update)}


def trim(tokens: Array, logprobs: Array, lengths: Array, longest: int) -> tuple[Array, Array, Array]:
    """Completions cut to a power-of-two bucket that holds `longest`, so that shared padding is not computed and the
    number of compilations stays logarithmic."""
    width = min(max(_SHORTEST, 1 << (longest - 1).bit_length()), tokens.shape[-1])
    return tokens[..., :width], logprobs[..., :width], lengths


def _batches(
    minibatches: int,
    prompts: Array,
    prompt_lengths: Array,
    tokens: Array,
    logprobs: Array,
    lengths: Array,
    advantages: Array,
) -> list[Batch]:
    """The mini-batches of a rollout: B = P * G rows, row b in mini-batch b % minibatches."""
    G, width = tokens.shape[1:]
    mask = (jnp.arange(width) < lengths[..., None]).astype(jnp.float32)
    rows: Callable[[Array], Array] = lambda x: x.reshape(-1, *x.shape[2:])
    per_row = lambda x: jnp.repeat(x, G, axis=0)
    whole = Batch(
        make_rows(per_row(prompts), per_row(prompt_lengths), rows(tokens), rows(mask)),
        rows(advantages),
        sampler_logprobs=rows(logprobs),
        mean_tokens=mask.sum() / minibatches,
    )
    parts = split(whole, minibatches)
    return [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(minibatches)]


def _combine(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over a rollout's updates; the gap to the sampler from the first, before the weights moved on."""
    mean = {name: float(np.mean([metrics[name] for metrics in history])) for name in history[0]}
    return mean | {name: value for name, value in history[0].items() if name.startswith("sampling/")}
