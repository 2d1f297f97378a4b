"""Random cases of the objective, and our side of a comparison."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.objective import GRPO, Batch

B, TC = 6, 9
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")  # those that TRL has
MAX_LENGTH = TC + 2


@dataclass(frozen=True)
class Case:
    """Numbers that an update starts from; arrays [B,Tc] but for the advantages."""

    logprobs: np.ndarray
    old: np.ndarray | None
    ref: np.ndarray
    sampler: np.ndarray | None
    entropy: np.ndarray
    advantages: np.ndarray  # [B] or [B,Tc]
    mask: np.ndarray
    on_policy: np.ndarray | None = None  # [B]
    updates: int = 1  # of a rollout that has `updates` times the tokens of this batch, and a few more

    @property
    def rollout_tokens(self) -> float:
        """Tokens of the whole rollout."""
        return float(self.mask.sum()) * self.updates + (self.updates - 1)


def random_case(seed, *, old=True, sampler=True, huge=False, updates=2) -> Case:
    """Log-probs near each other, rows of every kind: a whole one, one of one token, one wholly masked, a group of
    equal rewards, and, if `huge`, tokens whose log-ratios make up to exp(60)."""
    rng = np.random.default_rng(seed)
    noise = lambda spread: rng.normal(0, spread, (B, TC))
    logprobs = rng.normal(-2, 1, (B, TC))
    recorded = logprobs + noise(0.3)  # many ratios outside 0.8 to 1.2
    reference = logprobs + noise(0.5)
    sampled = recorded + noise(0.2)
    if huge:
        recorded[0, :3] += rng.uniform(5, 60, 3) * rng.choice([-1, 1], 3)
        reference[0] = logprobs[0] + rng.uniform(1, 2, TC)  # TRL's exp(x) - x - 1 is noise for a small x
        sampled[5, 0] += rng.uniform(5, 60) * rng.choice([-1, 1])
    lengths = np.array([TC, 1, 0, *rng.integers(1, TC + 1, B - 3)])
    rows = rng.permutation(B)
    advantages = rng.normal(0, 1.3, B)
    advantages[rng.integers(B)] = 0.0
    as_float = lambda x: x[rows].astype(np.float32)
    return Case(
        logprobs=as_float(logprobs),
        old=as_float(recorded) if old else None,
        ref=as_float(reference),
        sampler=as_float(sampled) if sampler else None,
        entropy=rng.uniform(0.01, 3, (B, TC)).astype(np.float32),
        advantages=advantages.astype(np.float32),
        mask=(np.arange(TC) < lengths[rows][:, None]).astype(np.float32),
        updates=updates,
    )


def batch_of(case: Case, objective: GRPO) -> Batch:
    """The case as the update sees it."""
    empty = jnp.zeros((B, 1), jnp.int32)
    rows = Rows(empty, empty[:, 0], jnp.zeros((B, TC), jnp.int32), jnp.asarray(case.mask))
    there = lambda x: None if x is None else jnp.asarray(x)
    return Batch(
        rows,
        jnp.asarray(case.advantages),
        sampler_logprobs=there(case.sampler),
        old_logprobs=there(case.old),
        ref_logprobs=jnp.asarray(case.ref) if objective.beta else None,
        on_policy=there(case.on_policy),
        mean_tokens=jnp.float32(case.rollout_tokens / case.updates),
    )


@dataclass(frozen=True)
class Outcome:
    """What a loss comes to."""

    loss: float
    by_logprobs: np.ndarray  # [B,Tc], its gradient
    by_entropy: np.ndarray  # [B,Tc]
    metrics: dict[str, float]


def ours(objective: GRPO, case: Case, control=None):
    """(Outcome, the entropy bonus's next state) of our objective, in one micro-batch: test_update.py splits."""
    batch = objective.weigh(batch_of(case, objective), control)
    entropy = jnp.asarray(case.entropy) if objective.needs_entropy else None
    total = lambda logprobs, entropy: objective.loss(logprobs, entropy, batch)
    wanted = (0,) if entropy is None else (0, 1)
    (loss, rows), grads = jax.value_and_grad(total, wanted, has_aux=True)(jnp.asarray(case.logprobs), entropy)
    metrics = {name: float(value) for name, value in objective.metrics(rows, batch).items()}
    if control is not None:
        control = objective.bonus.after(control, objective.effective_entropy(rows))
    by_entropy = np.zeros((B, TC)) if entropy is None else np.asarray(grads[1])
    return Outcome(float(loss), np.asarray(grads[0]), by_entropy, metrics), control


def assert_outcomes_equal(found: Outcome, wanted: Outcome, what=""):
    """Values within 1e-6 and gradients within 1e-5 of their size; where terms cancel, of the terms' size."""
    mass = np.abs(wanted.by_logprobs).sum()
    assert abs(found.loss - wanted.loss) <= 1e-6 * max(1.0, abs(wanted.loss), mass), what
    for ours_, theirs in ((found.by_logprobs, wanted.by_logprobs), (found.by_entropy, wanted.by_entropy)):
        room = 1e-5 * np.abs(theirs) + 1e-6 * np.abs(theirs).max(-1, keepdims=True)
        assert (np.abs(ours_ - theirs) <= room).all(), (what, ours_, theirs)
