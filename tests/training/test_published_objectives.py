"""Each published variant, as its settings say it, through the whole trainer: settings reach the formula they name."""

import pathlib
import re

import numpy as np
import pytest
import yaml

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.objective import GRPO
from grpo_jax.setup.learner import objective_of

TESTS = pathlib.Path(__file__).parents[1]
VOWELS, LENGTH = f"{TESTS / 'tiny_rewards.py'}:vowels", f"{TESTS / 'tiny_rewards.py'}:brevity"

OPTIONS = {"r", "k1", "k2", "k3", "loss", "reward", "sequence", "trajectory"}
OPTIONS |= {"group", "leave_one_out", "reinforce_plus_plus"}


@pytest.fixture
def train(tiny_settings, shared_programs):
    """`train(**changes)`: (the metrics, the trainer) of a run of two steps."""

    def run(**changes):
        small = {
            "output_dir": None,
            "max_steps": 2,
            "eval_prompts": 0,
            "mesh": "data=1",
            "log_completions_steps": 0,
        }
        trainer = GRPOTrainer(tiny_settings["model"], args=GRPOConfig(**tiny_settings | small | changes))
        trainer.train()
        return trainer.state.log_history, trainer

    return run


VARIANTS = {
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {
        "epsilon_high": 0.28,
        "dynamic_sampling": True,
        "overlong_buffer": 4,
        "mask_truncated_completions": True,
    },
    "gspo": {
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "num_minibatches": 2,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "scale_rewards": "batch"},
    "sapo": {"loss_type": "sapo", "num_iterations": 2},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo", "sampler_correction": "token_mask", "num_iterations": 2},
    "rloo": {
        "loss_type": "grpo",
        "advantage_estimator": "leave_one_out",
        "scale_rewards": "none",
        "importance_sampling_level": "trajectory",
        "beta": 0.05,
        "kl_in": "reward",
        "kl_estimator": "k1",
        "num_iterations": 2,
    },
    "reinforce_lite": {
        "loss_type": "reinforce",
        "advantage_estimator": "leave_one_out",
        "advantage_clip": 2.0,
        "gradient_samples": 1,
    },
    "reinforce_plus_plus": {
        "advantage_estimator": "reinforce_plus_plus",
        "beta": 0.01,
        "kl_in": "reward",
        "kl_estimator": "k1",
    },
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum", "rewards": f"{VOWELS},{LENGTH}"},
    "entropy and off_policy": {
        "entropy_coef": 0.01,
        "top_entropy_quantile": 0.2,
        "micro_batch_size": 8,
        "off_policy_mask_threshold": 0.5,
        "num_iterations": 3,
        "sampler_correction": "sequence_truncate",
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_variant_trains(train, name):
    lines, trainer = train(**VARIANTS[name])
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert all(np.isfinite(line["loss"]) for line in lines)
    first, second = lines
    if "kl_in" in VARIANTS[name]:  # the reference is the first policy
        assert abs(first["kl"]) < 1e-5 < abs(second["kl"])
    if name == "gspo":
        assert first["clip_ratio/region_mean"] > 0
    if name == "dapo":
        assert first["rewards/overlong/mean"] < 0
        assert trainer.components.learner.passes.mask_truncated
    if name == "reinforce_lite":
        assert trainer.components.learner.passes.rows(8, 2) == 8
    if name == "gdpo":
        assert {"rewards/vowels/mean", "rewards/brevity/mean"} <= set(first)
    if name == "vespo":
        assert 0 < first["vespo/phi_seq_mean"] < 3
    if name == "entropy and off_policy":
        assert first["policy_loss"] > first["loss"]
        assert {"off_policy_dropped", "sampling/importance_sampling_ratio/mean"} <= set(first)


def test_settings_named_in_the_docs_exist():
    text = (TESTS.parent / "docs" / "objectives.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 12
    for block in blocks:
        GRPOConfig(**yaml.safe_load(block))
    for word in re.findall(
        r"`([a-z_]+)`", text.split("| `loss_type` | policy loss")[0].split("|---|---|")[1]
    ):
        assert word in {*GRPOConfig.model_fields, *OPTIONS}, word


def test_settings_reach_the_objective():
    """Every setting of the loss changes the objective that the learner compiles."""
    changed = {
        "loss_type": ("grpo", {"loss_type": "grpo"}),
        "epsilon": (0.1, {"epsilon_low": 0.1, "epsilon_high": 0.1}),
        "epsilon_high": (0.3, {"epsilon_high": 0.3}),
        "beta": (0.2, {"beta": 0.2}),
        "delta": (4.0, {"delta": 4.0}),
        "importance_sampling_level": ("trajectory", {"level": "trajectory"}),
        "entropy_coef": (0.1, {"bonus": EntropyBonus(0.1)}),
        "top_entropy_quantile": (0.2, {"top_entropy_quantile": 0.2}),
        "off_policy_mask_threshold": (0.5, {"off_policy_threshold": 0.5}),
        "sampler_correction": ("token_mask", {"sampler_mode": "token_mask"}),
        "max_completion_length": (99, {"max_length": 99}),
    }
    for name, (value, wanted) in changed.items():
        assert objective_of(GRPOConfig(**{name: value})) == GRPO(**({"max_length": 512} | wanted)), name
    assert objective_of(GRPOConfig(beta=0.2, kl_in="reward", kl_estimator="k1")).beta == 0


def test_divergence_and_overlong_penalties_are_subtracted_from_the_reward(train, tiny_settings):
    """Advantages by hand from what a step collected."""
    _, trainer = train(beta=0.5, kl_in="reward", kl_estimator="k2", overlong_buffer=6, scale_rewards="none")
    components = trainer.components
    import jax

    with jax.set_mesh(components.policy.mesh), trainer.pool:
        from grpo_jax.runs.run import Stopwatch
        from grpo_jax.training.run_state import RunState

        stage = components.stages[0]
        groups, *_ = stage.collect(
            components.policy.rollout_copy(trainer.trained.params),
            5,
            Stopwatch(),
            RunState(components.curriculum.begin()),
        )
        found, metrics = stage.advantages(groups)
        divergence = components.learner.divergence(groups)
    lengths = groups.rollout.lengths
    rewards = groups.scored.values[..., 0] + np.clip((2.0 - lengths) / 6, -1, 0) - 0.5 * divergence.sum(-1)
    np.testing.assert_allclose(found, rewards - rewards.mean(1, keepdims=True), atol=1e-5)
    assert metrics["kl"] == pytest.approx(divergence.sum() / lengths.sum(), rel=1e-5)
    assert metrics["kl"] > 1e-3
