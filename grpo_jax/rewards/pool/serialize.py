"""How functions and their arguments travel from the trainer to a worker process."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.rewards.load import Reward, describe, load_reward

LARGEST_FUNCTION = 64 * 2**20
"""Bytes. A function that carries more with it (a model, a table) is not copied to every worker."""

Packed = tuple[str, Any]
"""("spec", text to load it by), ("pickle", bytes), or ("absent", why it cannot travel)."""


def pack(reward: Reward) -> Packed:
    """By name where it has one, so that a worker imports the file itself; else pickled."""
    if reward.spec:
        return "spec", reward.spec
    import cloudpickle

    try:
        data = cloudpickle.dumps(reward.function)
    except Exception as fault:
        return "absent", describe(fault)
    if len(data) > LARGEST_FUNCTION:
        return "absent", f"it holds {len(data) / 2**20:.0f} MiB"
    return "pickle", data


def unpack(packed: Sequence[Packed]) -> tuple[list[Callable[..., Any] | None], dict[int, str]]:
    """The functions, in order (None where there is none here), and by index why a sent one does not load."""
    functions: list[Callable[..., Any] | None] = [None] * len(packed)
    failed: dict[int, str] = {}
    for index, (kind, what) in enumerate(packed):
        try:
            if kind != "absent":
                functions[index] = load_reward(what).function if kind == "spec" else pickle.loads(what)
        except Exception as fault:
            failed[index] = describe(fault)
    return functions, failed


def pack_data(value: Any) -> bytes:
    """Plain pickle for plain data; objects of classes in the user's script need cloudpickle."""
    try:
        return pickle.dumps(value)
    except Exception:
        import cloudpickle

        return cloudpickle.dumps(value)
