"""The demo's starting model: made here, with a tokenizer of its own, from nothing but the seed and the tasks.

It has Qwen2.5's architecture with some hundred thousand parameters, and one symbol for every number or phrase of its
tasks: see `tiny_model.py`. A short cold start on worked examples teaches it to try, to check and to try again; then, on
examples of which most give up at the first failure, to do just that. What GRPO adds is to think on until the target is
reached: success and length grow together. The tasks are those of `data/tiny_*.py`, alone or several together.

What did not work: every example giving up after a failure with the same probability (later trials are then too
rare to be learned well, and GRPO has nothing to build on); verdicts without the target beside them (the model says
"yes" to any outcome); the usual small random weights (see `_random_params`); GRPO at a learning rate of 1e-3
(arithmetic decays faster than patience grows).
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.data.tasks import tiny_countdown, tiny_knights, tiny_math
from grpo_jax.demo.tiny_model import _NOTE, TASKS, size_of, write_blank
from grpo_jax.errors import UserError
from grpo_jax.models.hf import save_model
from grpo_jax.models.transformer import Params
from grpo_jax.runs.folder import RunFolder, check_place
from grpo_jax.runs.progress import TrainingProgress
from grpo_jax.runs.status import phase
from grpo_jax.scoring.reward_models import find_reward_models
from grpo_jax.setup.policy import Policy, open_policy
from grpo_jax.training.sft_trainer import FineTuner

COLD_START = SFTConfig(
    model="demo",
    dataset=tiny_countdown.NAME,
    rows_per_step=64,
    micro_batch_size=16,  # small enough for the cache of a core
    max_length=256,
    learning_rate=4e-3,
    lr_scheduler_type="linear",
    warmup_steps=20,
    logprob_chunk=65536,
    gradient_checkpointing="none",
    shuffle_dataset=False,  # the order teaches
)
STEPS = {tiny_countdown.NAME: (1400, 200), tiny_knights.NAME: (300, 60), tiny_math.NAME: (300, 60)}
"""Steps of the cold start on examples that never give up, and on those of which most do so at the first failure."""
PATIENCE = 0.15
"""The share of the latter that do not."""
CARE = 0.75
"""The share of the latter whose answer has the form that it should have, where the task asks for one."""
EXAMPLES = 12_800
"""Different problems in each of the two, over all tasks."""
Task = tuple[Any, str]
"""A task's module and its options."""


@contextmanager
def starting_model(config: GRPOConfig) -> Iterator[Path]:
    """The folder of the model that `model: demo` stands for: `start` in the run's folder, made when it is not
    there yet; in a temporary folder when the run has none. UserError where the demo cannot run."""
    _check(config)
    if config.output_dir is None:
        with tempfile.TemporaryDirectory() as home:
            yield _made(Path(home) / "start", config)
        return
    with RunFolder(config.output_dir) as run:
        started = check_place(run.path, config.model_dump(mode="json"))
        run.lock()
        start = _made(Path(run.path) / "start", config, keep=started)
    yield start


def _check(config: GRPOConfig) -> None:
    tasks = tasks_for(_specs(config))
    for task, options in tasks:
        task.options_of(options)
    known = list(dict.fromkeys(task.NAME for task, _ in tasks))
    for spec in _parts(config.eval_dataset):
        if spec.partition(":")[0] not in known:
            raise UserError(
                f"eval_dataset = {spec}: this 'demo' knows the symbols of {', '.join(known)} only; evaluate it on that"
            )
    if jax.process_count() > 1:
        raise UserError("model = demo: it is made by one process; start one, or give another model")
    if "://" in (config.output_dir or ""):
        raise UserError(
            f"output_dir = {config.output_dir}: the demo keeps its model there; give a local folder"
        )
    find_reward_models(config.rewards)


def _specs(config: GRPOConfig) -> list[str]:
    """The data set, or the parts of a mixture."""
    return _parts(config.dataset)


def _parts(dataset: str | Mapping[str, str] | None) -> list[str]:
    """Of one data set, or of several by name."""
    if dataset is None:
        return []
    return [dataset] if isinstance(dataset, str) else list(dataset.values())


def tasks_for(specs: Sequence[str]) -> list[Task]:
    """What a start for these data sets is taught, such as `tiny_knights:people=3`; twice the same is once. UserError
    for one that no start can be made for."""
    tasks = []
    for spec in dict.fromkeys(specs):
        name, _, options = spec.partition(":")
        if name not in TASKS:
            known = ", ".join(TASKS)
            raise UserError(f"dataset = {spec}: the model 'demo' reads {known} only; give another model")
        tasks.append((TASKS[name], options))
    return tasks


def _made(start: Path, config: GRPOConfig, keep: bool = False) -> Path:
    """`start` itself, holding the model that the settings lead to."""
    specs = list(dict.fromkeys(_specs(config)))
    tasks = tasks_for(specs)
    recipe = {"seed": config.seed, "tasks": specs, "steps": _steps_for(tasks)}
    if start.exists():
        if keep or _recipe_of(start) == recipe:
            print(f"Starting model: {start}, made before")
            return start
        _remove(start)
    with tempfile.TemporaryDirectory() as blank:
        write_blank(Path(blank), [task.NAME for task, _ in tasks], config.seed, {_NOTE: recipe})
        policy = open_policy(config, blank)
        symbols = f"and a tokenizer of {len(policy.tokenizer)} symbols"
        print(f"Building a Qwen2.5-shaped model of {size_of(policy.cfg)} random parameters {symbols}")
        save_model(start, policy.cfg, _cold_start(policy, config.seed, tasks), policy.folder)
    print(f"Starting model: {start}")
    return start


def _recipe_of(start: Path) -> dict[str, Any] | None:
    try:
        return json.loads((start / "config.json").read_text(encoding="utf-8")).get(_NOTE)
    except (OSError, ValueError):
        return None


def _remove(start: Path) -> None:
    """Make room: the run that this model was made for never began."""
    if _recipe_of(start) is None:
        raise UserError(f"output_dir: {start} is there and not the demo's model; give another output_dir")
    shutil.rmtree(start)


def _steps_for(tasks: Sequence[Task]) -> list[int]:
    """[on patient examples, on impatient ones], for all of them together."""
    of_each = [STEPS[name] for name in dict.fromkeys(task.NAME for task, _ in tasks)]
    return [sum(steps) for steps in zip(*of_each)]


def _rows(tasks: Sequence[Task], seed: int) -> list[dict[str, str]]:
    """The cold start's rows in their order: first how to try, then how to give up. Of several tasks in turn."""

    def rows_of(steps: int, patience: float, care: float) -> Iterator[dict[str, str]]:
        count = -(-EXAMPLES // len(tasks))
        each = [task.worked_examples(options, seed, count, patience, care) for task, options in tasks]
        in_turn = itertools.cycle(itertools.chain.from_iterable(zip(*each)))
        return itertools.islice(in_turn, steps * COLD_START.rows_per_step)

    patient, rest = _steps_for(tasks)
    return [*rows_of(patient, 1.0, 1.0), *rows_of(rest, PATIENCE, CARE)]


def _cold_start(policy: Policy, seed: int, tasks: Sequence[Task]) -> Params:
    """The weights after a short fine-tuning on worked examples."""
    with phase("making the worked examples"):
        rows, steps = _rows(tasks, seed), sum(_steps_for(tasks))
    print(f"Cold start: {steps} steps on {len(rows)} worked examples, of which this is one:")
    print(rows[0]["prompt"] + rows[0]["completion"])
    warmup = min(COLD_START.warmup_steps, steps // 2)
    with phase("reading the worked examples"):
        tuner = FineTuner(COLD_START.replace(seed=seed, max_steps=steps, warmup_steps=warmup), policy, rows)
    with jax.set_mesh(policy.mesh), TrainingProgress(steps) as progress:
        state = tuner.start()
        for step in range(steps):
            state, metrics = tuner(state, step)
            progress.log(step + 1, metrics)
    return state.params
