"""Names of optimizers: ours, and those of transformers that mean the same."""

from typing import Any, Literal, get_args

Optimizer = Literal["adamw", "adafactor", "lion", "muon", "sgd"]

SAME = {
    "adamw_apex_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_torch_npu_fused": "adamw",
    "adamw_torch_xla": "adamw",
    "lion_32bit": "lion",
    "paged_adamw_32bit": "adamw",
    "paged_lion_32bit": "lion",
}
"""What transformers' names mean here. They differ in where and how the same numbers are computed."""

_COMPACT = "with adam_moments: bfloat16"
NEAREST = {
    "apollo": "adafactor",
    "galore": "adafactor",
    "lomo": "adafactor",
    "schedule_free": "adamw with lr_scheduler_type: constant",
    "lion": f"lion {_COMPACT}",
    "adagrad": "adamw",
    "ademamix": "adamw",
    "grokadamw": "adamw",
    "rmsprop": "adamw",
    "stable_adamw": "adamw",
    "bit": f"adamw {_COMPACT}",
    "anyprecision": f"adamw {_COMPACT}",
}
"""A part of the names that are not offered, and the nearest that is; the first that fits."""


def ours(name: Any) -> Any:
    """Our name of an optimizer. ValueError for one that only transformers has; other values are left as they are."""
    if not isinstance(name, str) or name in SAME:
        return SAME.get(name, name)
    found = next((nearest for part, nearest in NEAREST.items() if part in name), None)
    if found and name not in get_args(Optimizer):
        raise ValueError(
            f"optim = {name}: not offered; the nearest is {found}, or pass an optax transformation as optimizers="
        )
    return name
