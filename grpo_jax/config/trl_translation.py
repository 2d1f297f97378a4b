"""Translates TRL's settings into ours, by the table in `config/trl_fields.py`."""

import reprlib
import sys
from collections.abc import Collection, Mapping
from enum import Enum
from fractions import Fraction
from typing import Any

from grpo_jax.config import generation_kwargs
from grpo_jax.config.trl_fields import OTHERS, PREFIXES, RULES

BATCH = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)
NONE_IS = {"min_p": 0.0, "top_k": 0, "save_total_limit": 0, "eval_steps": 0}
"""Ours, where TRL writes None for what is a number here."""


def accept(values: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """`values` with our names. Accepted TRL names are removed, with a note on stderr where they have no effect; refused
    ones stay, so that pydantic reports them with all other errors. So do those of the fields that are `known`."""
    kept = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    kept |= {name: ours for name, ours in NONE_IS.items() if name in kept and kept[name] is None}
    for reword in (generation_kwargs.translated, length_in_epochs, _warmup, _model, _precision, _seed):
        kept = reword(kept)
    kept = kept if BATCH[0] in known else _batch(_evaluation(kept))
    for name in [name for name in kept if name in RULES and name not in known]:
        rule, value = RULES[name], kept[name]
        if value is None or value in rule.accepted:
            del kept[name]
        elif not rule.refused:
            del kept[name]
            print(
                f"{name} = {reprlib.repr(value)}: no effect here: {rule.advice}", file=sys.stderr, flush=True
            )
    return kept


def translation(name: str, known: Collection[str], given: Mapping[str, Any]) -> str | None:
    """What to write instead of `name`, given the other settings `given`; None if nothing corresponds."""
    if name in BATCH and "num_generations" in known and (sizes := _sizes(given)):
        return sizes
    if name == "generation_kwargs" and (options := generation_kwargs.problems(given)):
        return options
    if name in RULES:
        return RULES[name].advice
    prefixed = next((text for prefix, text in PREFIXES.items() if name.startswith(prefix)), None)
    return OTHERS.get(name, prefixed)


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def length_in_epochs(values: dict[str, Any]) -> dict[str, Any]:
    """TRL writes max_steps = -1 beside the number of epochs."""
    by_epochs = values.get("num_train_epochs") is not None and str(values.get("max_steps")) == "-1"
    return _without(values, "max_steps") if by_epochs else values


def _warmup(values: dict[str, Any]) -> dict[str, Any]:
    """TRL takes a share of the run for warmup_steps too."""
    steps = values.get("warmup_steps")
    if isinstance(steps, float) and 0 < steps < 1 and not values.get("warmup_ratio"):
        return _without(values, "warmup_steps") | {"warmup_ratio": steps}
    return values


def _model(values: dict[str, Any]) -> dict[str, Any]:
    """Of model_init_kwargs, bfloat16 is the dtype; float32 weights are kept anyway, and what says where they lie or how
    attention is computed changes no result."""
    given = values.get("model_init_kwargs")
    if not isinstance(given, Mapping):
        return values
    kept = {name: str(value).removeprefix("torch.") for name, value in given.items() if value is not None}
    dtype = kept.get("dtype", kept.get("torch_dtype", "auto"))
    idle = {"attn_implementation", "device_map", "use_cache", "low_cpu_mem_usage"}
    if dtype in ("auto", "float32", "bfloat16"):
        idle |= {"dtype", "torch_dtype"}
    same = {"revision": "main", "trust_remote_code": "False"}
    left = {name: given[name] for name in kept if name not in idle and kept[name] != same.get(name)}
    values = values | {"model_init_kwargs": left}
    return values | {"dtype": "bfloat16"} if dtype == "bfloat16" and "dtype" not in values else values


def _precision(values: dict[str, Any]) -> dict[str, Any]:
    """bf16 sets the dtype, unless one is given."""
    bf16 = values.get("bf16")
    dtype = "bfloat16" if bf16 else "float32"
    if not isinstance(bf16, bool) or values.get("fp16") or values.get("dtype", "auto") not in ("auto", dtype):
        return values
    return _without(values, "bf16") | {"dtype": dtype}


def _evaluation(values: dict[str, Any]) -> dict[str, Any]:
    """A strategy that agrees with eval_steps has no effect."""
    steps = bool(values.get("eval_steps"))
    agrees = values.get("eval_strategy") == ("steps" if steps else "no")
    return _without(values, "eval_strategy") if agrees else values


def _seed(values: dict[str, Any]) -> dict[str, Any]:
    """The data's seed may be given if it equals `seed`."""
    same = values.get("data_seed") == values.get("seed", 0)
    return _without(values, "data_seed") if same else values


def _batch(values: dict[str, Any]) -> dict[str, Any]:
    """One sentence for all of TRL's batch sizes, reported at the first that is given."""
    first, *others = [name for name in BATCH if values.get(name) is not None] or [""]
    if first == "gradient_accumulation_steps" and values[first] == 1 and not others:
        return _without(values, first)
    return _without(values, *others)


def _sizes(given: Mapping[str, Any]) -> str | None:
    """Our settings that equal TRL's batch sizes; None if none is given, or one is not a positive integer."""
    rows, accumulated, held, drawn = (given.get(name) for name in BATCH)
    rows, accumulated, G = rows or 8, accumulated or 1, given.get("num_generations", 8)  # TRL's defaults
    held = held or accumulated  # TRL's batches that one rollout lasts for
    numbers = (rows, accumulated, held, G, drawn or 1)
    if not any(given.get(name) for name in BATCH) or not all(type(n) is int and n > 0 for n in numbers):
        return None
    if drawn:
        updates = Fraction(drawn, rows * accumulated)
        prompts, devices = f"{Fraction(drawn, G)} ({drawn} rows / {G} completions)", " / devices"
    else:
        held = max(held, accumulated)
        updates, devices = Fraction(held, accumulated), ""
        prompts = f"{Fraction(rows * held, G)} x devices ({rows} rows x {held} / {G} completions)"
    divided = f", num_minibatches: {updates}{devices}" if updates > 1 else ""
    ours = f"prompts_per_step: {prompts}, micro_batch_size: {rows} x devices{divided}"
    return f"sizes count over all devices; write {ours}"
