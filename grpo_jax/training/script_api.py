"""What scripts ask of a trainer before and after `train()`, with the names and meanings of TRL and transformers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.runs.files import is_local, write_atomically
from grpo_jax.sharding import hosts

INSTEAD_OF_HOOKS = {
    "compute_loss": "the loss follows from the settings (loss_type, epsilon, beta and so on)",
    "_compute_loss": "the loss follows from the settings (loss_type, epsilon, beta and so on)",
    "training_step": "the update is one compiled program; a callback's on_step_end is called after it",
    "prediction_step": "evaluate() samples and scores; a callback's on_evaluate gets the figures",
    "_generate_and_score_completions": "rollout and rewards are the steps of `train_loop` in grpo_jax/trainer.py",
    "_generate": "sampling is compiled; temperature, top_p, stop_strings and so on say how",
    "_generate_single_turn": "sampling is compiled; temperature, top_p, stop_strings and so on say how",
    "_calculate_rewards": "write a reward function; it gets all columns, and may call log_metric and log_extra",
    "_get_per_token_logps_and_entropies": "log-probs are computed in the compiled update",
    "_prepare_inputs": "give prepared rows as train_dataset",
    "_get_train_sampler": "write shuffle_dataset or a curriculum",
    "get_train_dataloader": "write shuffle_dataset or a curriculum",
    "get_eval_dataloader": "give rows as eval_dataset",
    "create_optimizer": "give an optax transformation as optimizers",
    "create_scheduler": "write lr_scheduler_type, or give an optax transformation with a schedule as optimizers",
    "create_optimizer_and_scheduler": "give an optax transformation as optimizers",
    "log": "write a callback with on_log",
    "_save_checkpoint": "write save_steps, or a callback with on_save",
}
"""Methods of TRL's trainer that subclasses override -> what to do here."""


class TrainOutput(dict[str, Any]):
    """The summary of a run, which is also transformers' TrainOutput: `global_step`, `training_loss`, `metrics`."""

    def __init__(self, summary: dict[str, Any], global_step: int, training_loss: float):
        super().__init__(summary)
        self.global_step, self.training_loss = global_step, training_loss

    @property
    def metrics(self) -> dict[str, Any]:
        """What transformers reports of a training: how long it took, and its mean loss."""
        return {
            "train_runtime": self["seconds"],
            "train_steps_per_second": self.global_step / self["seconds"] if self["seconds"] else 0.0,
            "train_loss": self.training_loss,
        }


class Accelerator:
    """What scripts ask of accelerate's object: which process this is."""

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return hosts.is_writer()

    is_local_main_process = is_main_process

    @property
    def process_index(self) -> int:
        """The number of this process."""
        return jax.process_index()

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return jax.process_count()

    def print(self, *values: Any, **named: Any) -> None:
        """Print on the main process only."""
        if self.is_main_process:
            print(*values, **named)

    def wait_for_everyone(self) -> None:
        """Return when all processes are here."""
        hosts.any_process(False)


class ScriptModel:
    """The trained model as scripts use it: `trainer.model.save_pretrained(folder)`. Its weights are JAX arrays."""

    def __init__(self, trainer: Any):
        self.config = trainer.components.policy.cfg
        self.save_pretrained = trainer.save_model


class ScriptAPI:
    """The part of a trainer that only scripts use. What it needs of the trainer is named in its annotations."""

    args: Any
    components: Any
    callback_handler: Any

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        for name, instead in INSTEAD_OF_HOOKS.items():
            if name in vars(cls):
                raise UserError(f"{cls.__name__}.{name}: never called here; {instead}")

    @property
    def accelerator(self) -> Accelerator:
        """Which process this is, in accelerate's words."""
        return Accelerator()

    @property
    def model(self) -> ScriptModel:
        """The model that is trained: its shape, and `save_pretrained`."""
        return ScriptModel(self)

    @property
    def processing_class(self) -> Any:
        """The tokenizer that the run uses."""
        return self.components.policy.tokenizer

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback: the object, or the first one of its class."""
        self.callback_handler.callbacks.remove(callback)

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes files."""
        return hosts.is_writer()

    is_local_process_zero = is_world_process_zero

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print metrics, a line each, under a title."""
        if hosts.is_writer():
            width = max(map(len, metrics), default=0)
            lines = [f"  {name:{width}} = {metrics[name]}" for name in sorted(metrics)]
            print("\n".join([f"***** {split} metrics *****", *lines]))

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write metrics to `{split}_results.json` in the run's folder, and into `all_results.json`."""
        if not (hosts.is_writer() and self.args.output_dir):
            return
        folder = epath.Path(self.args.output_dir)
        files: list[tuple[epath.Path, dict[str, Any]]] = [(folder / f"{split}_results.json", {})]
        if combined:
            together = folder / "all_results.json"
            files.append((together, json.loads(together.read_text()) if together.exists() else {}))
        for file, before in files:
            write_atomically(file, json.dumps(before | metrics, indent=4, sort_keys=True) + "\n")

    def save_state(self) -> None:
        """Write `trainer_state.json`, the steps done and the log history, to the run's folder."""
        if hosts.is_writer() and self.args.output_dir:
            state = dict(vars(self.callback_handler.state))
            text = json.dumps(state, indent=2, default=str)
            write_atomically(epath.Path(self.args.output_dir) / "trainer_state.json", text + "\n")


def place_model(output_dir: str) -> None:
    """Make the exported model of a run loadable from the run's own folder: links to the files of `hf`, or copies where
    the file system has no links. A bucket has neither, and its model stays in `hf`."""
    if not is_local(output_dir):
        return
    folder = Path(output_dir)
    files = (file for file in (folder / "hf").rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        target = folder / file.relative_to(folder / "hf")
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            try:
                os.link(file, target)
            except OSError:
                shutil.copy2(file, target)
