"""`model:PATH_OR_HUB_ID` among the rewards: a reward model.

It runs on the devices, not in worker processes, so this file only knows its name; `grpo_jax/scoring/reward_models.py`
loads it. No jax here.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from grpo_jax.errors import UserError

PREFIX = "model:"


def model_of(spec: str) -> str:
    """The folder, absolute so that config.yaml also works from another folder, or the hub id.

    Raises:
        UserError: `spec` names no model.
    """
    name = spec.removeprefix(PREFIX).strip()
    if not name:
        raise UserError(f"rewards: '{spec}' names no model; write model:FOLDER or model:OWNER/NAME")
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def column_of(model: str) -> str:
    """The name of its metrics: the last part of the model's name, as in TRL."""
    return PurePosixPath(model).name or model


def on_devices(prompts: list[Any], completions: list[Any]) -> list[Any]:
    """Placeholder for a reward model in the `RewardPool`. A scorer that has the model does not call it."""
    raise RuntimeError("a reward model runs on the devices of a run: train, eval, reject or data grade")
