"""A run in little memory: prompts wait, and the same is sampled and learned; too little is refused at the start."""

import functools
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest

from grpo_jax.cli import main
from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.plans.compiled import compiled_here
from grpo_jax.plans.fitting import LocalRun, with_micro_batch
from grpo_jax.setup import memory_budget
from grpo_jax.trainer import GRPOTrainer

pytestmark = pytest.mark.usefixtures("shared_programs")

SMALL = 0.00012  # GiB: room for two prompts of two completions on a device, of eight
TINY = 0.00001


@pytest.fixture
def settings(tiny_settings, tmp_path):
    return tiny_settings | {
        "max_steps": 2,
        "eval_prompts": 4,
        "mesh": "data=1",
        "output_dir": str(tmp_path / "run"),
    }


def test_little_memory_changes_no_sampled_token(settings, tmp_path, capsys):
    found = []
    for name, memory in (("all", None), ("few", SMALL)):
        trainer = GRPOTrainer(
            settings["model"],
            args=GRPOConfig(**settings | {"rollout_memory": memory, "output_dir": str(tmp_path / name)}),
        )
        assert (trainer.components.stages[0].sampler.rows > 0) == (memory is not None)
        assert trainer.components.stages[0].sampler.rows in (0, 4)
        trainer.train()
        table = pyarrow.parquet.read_table(tmp_path / name / "completions" / "completions_00002.parquet")
        found.append(table.to_pydict())
    assert "the others wait" in capsys.readouterr().out
    assert found[0]["completion"] == found[1]["completion"]
    for ours, theirs in zip(found[0]["logprobs"], found[1]["logprobs"]):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_host_plans_with_the_smallest_device_of_all(settings, monkeypatch):
    """Each host plans the table of all: they must plan with the smallest device of any of them."""
    monkeypatch.setattr(memory_budget.hosts, "min_over_processes", lambda mebibytes: min(mebibytes, 20 << 10))
    trainer = GRPOTrainer(settings["model"], args=GRPOConfig(**settings))
    policy, learner = trainer.components.policy, trainer.components.learner
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80 << 30})
    here = SimpleNamespace(mesh=SimpleNamespace(local_devices=[device], shape=policy.mesh.shape))
    for name in (
        "cfg",
        "dtype",
        "rollout_cache",
        "lora",
        "abstract_rollout",
        "rollout_shardings",
    ):
        setattr(here, name, getattr(policy, name))
    left = memory_budget.memory_for_rollouts(trainer.args, here, learner.abstract_state)
    held = sum(memory_budget.held_always(trainer.args, policy, learner.abstract_state).values())
    held += memory_budget.copy_bytes(policy)
    assert left == int(0.9 * (20 << 30)) - held


def test_a_run_computes_as_many_rows_at_a_time_as_fit(settings, monkeypatch, capsys):
    """The devices' memory is asked for, and the update that trains is the one that was compiled for it."""
    policy = GRPOTrainer(settings["model"], args=GRPOConfig(**settings)).components.policy
    asked = GRPOConfig(**settings | {"auto_micro_batch": True, "micro_batch_size": 0})

    @functools.cache
    def needs(rows):
        here = LocalRun(
            GRPOConfig(**settings | {"micro_batch_size": rows}), "here", policy.cfg, policy, 1 << 40
        )
        job = here.update()
        return compiled_here(job, here.mesh).peak + job.beside

    whole = settings["prompts_per_step"] * settings["num_generations"]
    assert needs(whole) > needs(whole // 2)
    between = int((needs(whole) + needs(whole // 2)) / 2 / memory_budget.USABLE)
    for memory, rows in ((None, 0), (1 << 40, whole), (between, whole // 2)):
        monkeypatch.setattr(memory_budget, "smallest_device", lambda policy, memory=memory: memory)
        monkeypatch.setattr(memory_budget, "memory_for_rollouts", lambda *_: None)
        trainer = GRPOTrainer(settings["model"], args=asked)
        assert trainer.components.config.micro_batch_size == rows
        assert trainer.components.learner.micro_batches == whole // (rows or whole)
    with pytest.raises(UserError, match="auto_micro_batch = true: the update does not fit these devices"):
        with_micro_batch(asked, policy, 1000)


def test_too_little_memory_is_refused_before_the_run(settings, options, capsys):
    with pytest.raises(UserError, match="rollout_memory = 1e-05"):
        GRPOTrainer(settings["model"], args=GRPOConfig(**settings | {"rollout_memory": TINY}))
    assert main(["train", *options(settings | {"rollout_memory": TINY})]) == 2
    assert "one prompt with 2 completions of up to 8 tokens takes" in capsys.readouterr().err
