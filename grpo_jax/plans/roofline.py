"""How long a step takes at least on a target: operations and bytes counted by formula, at the speeds of data sheets.

The compiler's own count is of no use here: it counts a loop's body once. Real runs take longer: a good update reaches
40 to 60 % of the operations, a good decoder 60 to 80 % of the bandwidth.
"""

from dataclasses import dataclass

from grpo_jax.models.config import ModelConfig
from grpo_jax.plans.planned_run import Subject
from grpo_jax.rollout.row_table import slots_for
from grpo_jax.setup.memory_budget import copy_bytes
from grpo_jax.sharding.targets import chip_of


@dataclass(frozen=True)
class Bound:
    """Seconds of the stages of a step at least, and the tokens that are sampled meanwhile."""

    rollout: float
    score: float
    update: float
    tokens: int

    @property
    def step(self) -> float:
        return self.rollout + self.score + self.update


def matrix_weights(cfg: ModelConfig) -> int:
    """Weights that a token is multiplied with: all matrices, the head too, and no lookup."""
    attention = cfg.hidden_size * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
    layer = attention + 3 * cfg.hidden_size * cfg.intermediate_size
    return cfg.num_layers * layer + cfg.vocab_size * cfg.hidden_size


def forward_flops(cfg: ModelConfig, tokens: int, context: float) -> float:
    """Operations of `tokens` tokens that attend to `context` tokens on the average: two for each weight, and for each
    head and token two for a score and two for a value, times the head's width."""
    attention = 4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * context
    return tokens * (2.0 * matrix_weights(cfg) + attention)


def bound(subject: Subject) -> Bound:
    """Of a step whose completions are all as long as they may be."""
    c, learner = subject.config, subject.learner
    sampled = c.prompts_per_step * c.num_generations
    width = c.max_prompt_length + c.max_completion_length
    learned = learner.passes.rows(c.prompts_per_step, c.num_generations)
    forward = forward_flops(subject.cfg, learned * width, width / 2)
    speed = chip_of(subject.target).flops * subject.mesh.size
    backward = 2.0 if subject.policy.lora is None else 1.0  # frozen weights have no gradient
    passes = 1 + backward + (c.gradient_checkpointing in ("full", "offload"))
    scores = (c.beta > 0) + (learner.passes.updates > 1)
    return Bound(
        _rollout(subject),
        scores * forward / speed,
        c.num_iterations * passes * forward / speed,
        sampled * c.max_completion_length,
    )


def _rollout(subject: Subject) -> float:
    """Each token moves the weights and the cache once, or computes with them, whichever takes longer."""
    c, chip = subject.config, chip_of(subject.target)
    demand, size, length = subject.demand, subject.size, c.max_completion_length
    rows = size.places * size.rows
    rounds = -(-c.prompts_per_step * c.num_generations // (rows * demand.parts))
    slots = sum(slots_for(t, length) for t in range(1, length + 1)) / length
    prompts = demand.cache_bytes(type(size)(size.places, size.rows, 0))
    own = (demand.cache_bytes(type(size)(size.places, size.rows, 1024)) - prompts) / 1024
    moved = (copy_bytes(subject.policy) + prompts + own * slots) / chip.bandwidth
    context = c.max_prompt_length + length / 2
    computed = forward_flops(subject.cfg, rows, context) / demand.tensor / chip.flops
    reading = forward_flops(subject.cfg, c.prompts_per_step * c.max_prompt_length, c.max_prompt_length / 2)
    return rounds * length * max(moved, computed) + reading / (chip.flops * subject.mesh.size)
