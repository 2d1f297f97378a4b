"""`model:PATH_OR_HUB_ID` among the rewards: a reward model. It runs on the run's devices and not in the pool's
processes, so here it has a name and no more; `grpo_jax/scoring/reward_models.py` opens it. No jax in here."""

from pathlib import Path, PurePosixPath
from typing import Any

from grpo_jax.errors import UserError

PREFIX = "model:"


def model_of(spec: str) -> str:
    """The folder, absolute so that config.yaml means the same elsewhere, or the hub id.

    UserError: nothing is named.
    """
    name = spec.removeprefix(PREFIX).strip()
    if not name:
        raise UserError(f"rewards: '{spec}' names no model; write model:FOLDER or model:OWNER/NAME")
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def column_of(model: str) -> str:
    """What its metrics are called: the last part of the name, as in TRL."""
    return PurePosixPath(model).name or model


def on_devices(prompts: list[Any], completions: list[Any]) -> list[Any]:
    """Stands in the pool for a reward model. A scorer with the models never asks it."""
    raise RuntimeError("a reward model runs on the devices of a run: train, eval, reject or data grade")
