"""The verb `export`: a checkpoint of a run as a Hugging Face folder."""

from pathlib import Path
from typing import Any

from etils import epath

from grpo_jax.assembly import optimizer_of, schedule_of
from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.errors import UserError
from grpo_jax.learner.optimizer import TrainState, abstract_state
from grpo_jax.models.hf import save_model
from grpo_jax.models.qwen import abstract_params
from grpo_jax.policy import Policy, open_policy
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.folder import RunFolder


def export_command(run: str, out: str, step: int | None = None) -> int:
    """Write the checkpoint of `step`, or the newest whole one, to the new folder `out`."""
    config = _settings(RunFolder(run).settings()).replace(mesh=None)  # this machine's, whatever the run had
    policy = open_policy(config, starting_model(config.model, epath.Path(run)))
    done, state = _restore(run, config, policy, step)
    save_model(Path(out), policy.cfg, state.params, policy.folder)
    print(f"step {done} of {run}: {out}")
    return 0


def _settings(values: dict[str, Any]) -> GRPOConfig | SFTConfig:
    """The run's settings; a run of `sft` is known by the one that only it has."""
    return SFTConfig(**values) if "completion_column" in values else GRPOConfig(**values)


def starting_model(model: str, run: epath.Path) -> str | Path:
    """Where a run's starting model lies: the demo keeps the one it made in its own folder."""
    return Path(run / "start") if model == "demo" else model


def _restore(
    run: str, config: GRPOConfig | SFTConfig, policy: Policy, step: int | None
) -> tuple[int, TrainState]:
    optimizer = optimizer_of(config, schedule_of(config))
    abstract = abstract_state(abstract_params(policy.cfg), optimizer, policy.mesh)
    with Checkpoints(RunFolder(run).checkpoints, read_only=True) as checkpoints:
        found = checkpoints.restore(abstract, step)
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; let the run reach a multiple of save_steps first")
    return found[0], found[1]
