"""The verb `export`: a checkpoint of a run as a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.errors import UserError
from grpo_jax.models.transformer import Params
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.status import phase
from grpo_jax.setup.learner import lora_of
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.setup.status import show_status
from grpo_jax.setup.tokenizer import tokenizer_of
from grpo_jax.setup.weights import save_adapter, save_trained


def export_command(
    run: str, out: str, step: int | None = None, adapter: bool = False, quiet: bool = False
) -> int:
    """Write the checkpoint of `step`, or the newest intact one, to the new folder `out`: the model, or its adapter."""
    with show_status(quiet):
        done = _export(run, out, step, adapter)
    print(f"step {done} of {run}: {out}")
    return 0


def _export(run: str, out: str, step: int | None, adapter: bool) -> int:
    """Write the checkpoint, and return its step."""
    config = _settings(RunFolder(run).settings()).replace(
        mesh=None
    )  # the mesh of this machine, not the run's
    policy = open_policy(
        config, starting_model(config.model, epath.Path(run)), **tokenizer_of(run), lora=lora_of(config)
    )
    if adapter and policy.lora is None:
        raise UserError(f"--adapter: {run} trained all weights; leave it out")
    done, params = _restore(run, policy, step)
    if adapter:
        save_adapter(Path(out), policy, params, config.model)
    else:
        save_trained(Path(out), policy, params)
    return done


def _settings(values: dict[str, Any]) -> GRPOConfig | SFTConfig:
    """The run's settings; a run of `sft` is recognised by a setting that only it has."""
    return SFTConfig(**values) if "completion_column" in values else GRPOConfig(**values)


def starting_model(model: str, run: epath.Path) -> str | Path:
    """The run's starting model; for the demo, the one in the run's folder."""
    return Path(run / "start") if model == "demo" else model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Weights:
    """The part of a TrainState that is exported."""

    params: Params


def _restore(run: str, policy: Policy, step: int | None) -> tuple[int, Params]:
    """(step, weights). The optimizer's state is not read."""
    lay = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    abstract = _Weights(jax.tree.map(lay, policy.abstract_trained(), policy.train_shardings()))
    with (
        phase("reading the checkpoint"),
        Checkpoints(RunFolder(run).checkpoints, read_only=True) as checkpoints,
    ):
        found = checkpoints.restore(abstract, step, partial=True)
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; let the run reach a multiple of save_steps first")
    return found[0], found[1].params
