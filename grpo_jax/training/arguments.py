"""The arguments of `GRPOTrainer`: checked, and converted to the form that the components take."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from etils import epath

from grpo_jax.config import GRPOConfig, ScriptConfig
from grpo_jax.errors import UserError, nearest
from grpo_jax.rewards.by_model import PREFIX
from grpo_jax.sharding.mesh_spec import parse_mesh
from grpo_jax.training.torch_models import WrittenModel, is_from, is_torch_model

Rows = Sequence[dict[str, Any]]

INSTEAD = {  # arguments of TRL's trainer -> what to do here
    "tools": "completions are not interrupted by tools here; leave it out",
    "rollout_func": "sampling is compiled here; leave it out",
    "environment_factory": "a prompt is answered in one turn here; leave it out",
    "formatting_func": "give rows with a prompt column",
    "ref_model": "the reference is the starting model, kept when beta is above 0; leave it out",
    "compute_metrics": "reward functions log metrics by log_metric(name, value)",
    "data_collator": "rows are dicts with a prompt; leave it out",
    "tokenizer": "give it as processing_class",
    "config": "give it as args",
}


def check(model: Any, tokenizer: Any, unsupported: Mapping[str, Any]) -> None:
    """Raise UserError for arguments that no trainer can be built from."""
    refuse(unsupported)
    check_model(model)
    check_tokenizer(tokenizer)


def refuse(unsupported: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown argument. One of TRL's that is None is accepted: it asks for nothing."""
    for name, value in unsupported.items():
        if name not in INSTEAD:
            known = ["reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class", "callbacks"]
            raise UserError(
                f"{name}: GRPOTrainer has no such argument{nearest(name, [*known, 'optimizers'])}"
            )
        if value is not None:
            raise UserError(f"{name}: {INSTEAD[name]}")


def check_model(model: Any) -> None:
    """Raise UserError unless the model is a name, or a loaded model of transformers or PEFT."""
    if not (isinstance(model, str | Path) or is_torch_model(model)):
        raise UserError(
            f"model: a {type(model).__name__} object; give a folder, a hub id, or a model of transformers or PEFT"
        )


def check_tokenizer(tokenizer: Any, name: str = "processing_class") -> None:
    """Raise UserError unless it is a tokenizer; a name is none."""
    if tokenizer is not None and not callable(getattr(tokenizer, "batch_decode", None)):
        raise UserError(
            f"{name}: {tokenizer!r:.60} is no tokenizer; give one of transformers, or leave it out for the "
            "model's own"
        )


def check_resume(wish: Any, config: GRPOConfig) -> None:
    """Raise UserError for the path of a checkpoint that the run does not resume from. True is accepted, too: the newest
    one is resumed in any case."""
    if not (wish is None or isinstance(wish, bool) or _is_newest(Path(wish), config.output_dir)):
        raise UserError(
            f"resume_from_checkpoint = {wish!r}: a run resumes from the newest checkpoint of its own output_dir, "
            f"{config.output_dir}; leave it out"
        )
    if wish is False and config.output_dir and (epath.Path(config.output_dir) / "checkpoints").exists():
        raise UserError(
            f"resume_from_checkpoint = False: {config.output_dir} holds a run, and the same output_dir resumes; "
            "give another one to start a new run"
        )


def _is_newest(path: Path, output_dir: str | None) -> bool:
    """Whether a path is the run's folder, or that of its newest checkpoint."""
    if output_dir is None:
        return False
    folder = Path(output_dir)
    steps = sorted((int(each.name), each) for each in folder.glob("checkpoints/*") if each.name.isdigit())
    return path.resolve() in {each.resolve() for each in (folder, *(each for _, each in steps[-1:]))}


def rows_of(name: str, dataset: Any) -> Rows | None:
    """A list of dicts from a list, a `datasets.Dataset` or any other sized iterable of rows."""
    if dataset is None:
        return None
    if isinstance(dataset, str | Path):
        raise UserError(
            f"{name}: {str(dataset)!r}; give rows, or name their source in the settings (dataset)"
        )
    if isinstance(dataset, Mapping):
        raise UserError(f"{name}: several data sets by name, {sorted(dataset)}; give one of them")
    if not isinstance(dataset, Iterable):
        raise UserError(f"{name}: {dataset!r:.80} has no rows; give a list of dicts or a datasets.Dataset")
    if not hasattr(dataset, "__len__"):
        raise UserError(
            f"{name}: a stream of rows has no end; give a part of it, such as list(rows.take(10000))"
        )
    rows = list(dataset)
    if not rows:
        raise UserError(f"{name}: no rows; give some")
    wrong = next((i for i, row in enumerate(rows, start=1) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise UserError(
            f"{name}, row {wrong}: {rows[wrong - 1]!r:.80} is no dict; give rows such as {{'prompt': ...}}"
        )
    _check_text_only(name, rows)
    return [dict(row) for row in rows]


def _check_text_only(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for number, row in enumerate(rows, start=1):
        if column := next((each for each in ("image", "images") if row.get(each) is not None), None):
            raise UserError(
                f"{name}, row {number}: a column '{column}'; the models here read text only. Remove the column if the "
                "prompts do without it"
            )


def domains_of(name: str, dataset: Any) -> Rows | dict[str, Rows] | None:
    """As `rows_of`, or the rows of each of several named data sets: the domains of a mixture, or evaluation sets."""
    if (
        not isinstance(dataset, Mapping) or "train" in dataset or not dataset
    ):  # the splits of one are no domains
        return rows_of(name, dataset)
    return {str(each): rows_of(f"{name}['{each}']", rows) or [] for each, rows in dataset.items()}


def functions_of(config: GRPOConfig, reward_funcs: Any) -> list[Any]:
    """The reward functions given, or those of the settings. UserError unless there are as many as weights."""
    chosen = config.rewards if reward_funcs is None else reward_funcs
    functions = [_reward(each) for each in (chosen if isinstance(chosen, list | tuple) else [chosen])]
    if not functions:
        raise UserError("reward_funcs: an empty list; give at least one function")
    if model := next((f for f in functions if is_from(f, "torch", "Module")), None):
        raise UserError(
            f"reward_funcs: {type(model).__name__} is a PyTorch model; save it by save_pretrained(folder), its "
            "tokenizer beside it, and give 'model:FOLDER'"
        )
    if config.reward_weights is not None and len(config.reward_weights) != len(functions):
        raise UserError(
            f"reward_weights = {config.reward_weights}: there are {len(functions)} reward functions; "
            "give one weight for each"
        )
    return functions


def wants_no_workers(config: GRPOConfig) -> bool:
    """Whether functions that were given as objects run in the script's process, as in TRL: unless the settings ask for
    worker processes or for a time limit."""
    return config.reward_workers is None and "reward_timeout" not in config.model_fields_set


def _reward(given: Any) -> Any:
    """A reward as it was given; but the folder or hub id of a reward model, as TRL writes it, has our prefix."""
    is_name = isinstance(given, str) and ":" not in given and not given.endswith(".py")
    return f"{PREFIX}{given}" if is_name and ("/" in given or Path(given).is_dir()) else given


def reward_tokenizers_of(functions: Sequence[Any], given: Any) -> list[Any] | None:
    """TRL's `reward_processing_classes`: a tokenizer for each reward, or None where the model's own is meant, as it is
    for functions, which read no tokens."""
    if given is None:
        return None
    tokenizers = list(given) if isinstance(given, list | tuple) else [given]
    if len(tokenizers) != len(functions):
        raise UserError(
            f"reward_processing_classes: {len(tokenizers)} of them, and {len(functions)} reward functions; give one "
            "for each, None for those that are no model"
        )
    for function, tokenizer in zip(functions, tokenizers):
        check_tokenizer(tokenizer, "reward_processing_classes")
        if tokenizer is not None and not str(function).startswith(PREFIX):
            raise UserError(
                f"reward_processing_classes: a tokenizer for {function!r:.60}, which is no reward model; give None"
            )
    return tokenizers


def optimizer_of(optimizers: Any) -> optax.GradientTransformation | None:
    """The optax transformation given, or None for the settings' own. TRL's pair (optimizer, schedule) is fine where
    the schedule is None: optax has it in the optimizer."""
    given = optimizers
    if isinstance(given, tuple) and len(given) == 2 and given[1] is None:
        given = given[0]
    if given is None or _looks_like_optax(given):
        return given
    what = [type(part).__name__ for part in (given if type(given) is tuple else [given])]
    raise UserError(
        f"optimizers: {', '.join(what)}; give an optax transformation, such as "
        "optax.adamw(optax.linear_schedule(1e-6, 0, 1000))"
    )


def _looks_like_optax(given: Any) -> bool:
    return all(callable(getattr(given, name, None)) for name in ("init", "update"))


def check_given(args: Any, reward_funcs: Any, train_dataset: Any) -> None:
    """Raise UserError where a script gives no rewards or no data, neither to the trainer nor in the settings: what the
    command line would take instead is not what a script means."""
    if not isinstance(args, ScriptConfig):
        return
    if reward_funcs is None and "rewards" not in args.model_fields_set:
        raise UserError("reward_funcs: none given; give functions, or names in the settings (rewards)")
    if train_dataset is None and "dataset" not in args.model_fields_set:
        raise UserError(
            "train_dataset: none given; give rows, or name their source in the settings (dataset)"
        )


def in_rollouts(config: GRPOConfig) -> tuple[GRPOConfig, str | None]:
    """A script's settings in the words of the command line, on the devices of its mesh; and what its batch sizes have
    become."""
    if not isinstance(config, ScriptConfig):
        return config, None
    sizes = parse_mesh(config.mesh)
    return config.in_rollouts(math.prod(sizes.values()) if sizes else jax.device_count())


def resolved(
    args: GRPOConfig,
    model: str | Path,
    rows: Rows | dict[str, Rows] | None,
    eval_rows: Rows | dict[str, Rows] | None,
) -> GRPOConfig:
    """The settings, with the model and the rows that the run uses; a resumed run compares these."""
    if not isinstance(args, GRPOConfig):
        raise UserError(f"args: a {type(args).__module__}.{type(args).__name__}; give a grpo_jax.GRPOConfig")
    changes: dict[str, Any] = {"model": str(model)}
    if rows is not None:
        changes["dataset"] = _all_described(rows)
        if eval_rows is None and args.eval_dataset is None:
            check_evaluated(args)
            changes |= {"eval_prompts": 0, "eval_steps": 0}  # nothing is held out
    if eval_rows is not None:
        changes["eval_dataset"] = _all_described(eval_rows)
    return args.replace(**changes)


def check_evaluated(args: GRPOConfig) -> None:
    """Raise UserError where a script asks for evaluations and gives no rows for them, as transformers does."""
    if isinstance(args, ScriptConfig) and args.eval_strategy != "no":
        raise UserError(
            f"eval_strategy = {args.eval_strategy}: no eval_dataset is given; give one, or write 'no'"
        )


def recorded(config: GRPOConfig, model: WrittenModel | None) -> GRPOConfig:
    """The settings that the run records: an adapter that came with a model has no place of its own."""
    has_adapter = model is not None and model.adapter is not None
    return config.replace(adapter="an adapter given from Python") if has_adapter else config


def _all_described(rows: Rows | dict[str, Rows]) -> str | dict[str, str]:
    if isinstance(rows, dict):
        return {name: _described(part) for name, part in rows.items()}
    return _described(rows)


def _described(rows: Rows) -> str:
    """The name in config.yaml of rows that were given from Python: other rows have another name."""
    text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return f"{len(rows)} rows given from Python ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
