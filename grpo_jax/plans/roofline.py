"""A lower bound on a step's time on a target: operations and bytes by formula, at the speeds of data sheets.

The compiler's own count is not usable, because it counts a loop's body once. Real runs take longer: a good update
reaches 40 to 60 % of the peak operations, a good decoder 60 to 80 % of the bandwidth.
"""

from dataclasses import dataclass

from grpo_jax.models.config import ModelConfig
from grpo_jax.plans.planned_run import PlannedRun
from grpo_jax.rollout.row_table import ring_slots
from grpo_jax.setup.memory_budget import copy_bytes
from grpo_jax.sharding.targets import chip_of


@dataclass(frozen=True)
class Bound:
    """Lower bounds on the seconds of a step's phases, and the tokens that the step samples."""

    rollout: float
    score: float
    update: float
    tokens: int

    @property
    def step(self) -> float:
        return self.rollout + self.score + self.update


def matrix_weights(cfg: ModelConfig) -> int:
    """Number of weights in matrix products: those of all layers and of the head, not the embedding lookup."""
    attention = cfg.hidden_size * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
    layer = attention + 3 * cfg.hidden_size * cfg.intermediate_size
    return cfg.num_layers * layer + cfg.vocab_size * cfg.hidden_size


def forward_flops(cfg: ModelConfig, tokens: int, context: float) -> float:
    """Operations of `tokens` tokens that attend to `context` tokens on average: two per weight, and for attention four
    per head, attended token and head dimension (two for the score, two for the value)."""
    attention = 4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * context
    return tokens * (2.0 * matrix_weights(cfg) + attention)


def bound(run: PlannedRun) -> Bound:
    """The lower bound of a step in which all completions have the maximum length."""
    c, learner = run.config, run.learner
    sampled = c.prompts_per_step * c.num_generations
    width = c.max_prompt_length + c.max_completion_length
    learned = learner.passes.rows(c.prompts_per_step, c.num_generations)
    forward = forward_flops(run.cfg, learned * width, width / 2)
    speed = chip_of(run.target).flops * run.mesh.size
    backward = 2.0 if run.policy.lora is None else 1.0  # frozen weights have no gradient
    passes = 1 + backward + (c.gradient_checkpointing in ("full", "offload"))
    scores = (c.beta > 0) + (learner.passes.updates > 1)
    return Bound(
        _rollout(run),
        scores * forward / speed,
        c.num_iterations * passes * forward / speed,
        sampled * c.max_completion_length,
    )


def _rollout(run: PlannedRun) -> float:
    """Seconds of a rollout. A token takes as long as reading weights and cache once or computing with them, whichever
    is longer."""
    c, chip = run.config, chip_of(run.target)
    demand, size, length = run.demand, run.size, c.max_completion_length
    rows = size.places * size.rows
    rounds = -(-c.prompts_per_step * c.num_generations // (rows * demand.shards))
    slots = sum(ring_slots(t, length) for t in range(1, length + 1)) / length
    prompts = demand.cache_bytes(type(size)(size.places, size.rows, 0))
    own = (demand.cache_bytes(type(size)(size.places, size.rows, 1024)) - prompts) / 1024
    moved = (copy_bytes(run.policy) + prompts + own * slots) / chip.bandwidth
    context = c.max_prompt_length + length / 2
    computed = forward_flops(run.cfg, rows, context) / demand.tensor / chip.flops
    reading = forward_flops(run.cfg, c.prompts_per_step * c.max_prompt_length, c.max_prompt_length / 2)
    return rounds * length * max(moved, computed) + reading / (chip.flops * run.mesh.size)
