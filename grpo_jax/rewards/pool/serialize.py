"""Serializes functions and their arguments for a worker process."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.rewards.load import Reward, describe, load_reward

LARGEST_FUNCTION = 64 * 2**20
"""Bytes. A function whose pickle is larger (it holds a model or a table) is not copied to every worker."""

Packed = tuple[str, Any]
"""("spec", the text to load it by), ("pickle", bytes), or ("absent", why it cannot be sent)."""


def pack(reward: Reward) -> Packed:
    """Pack a function by its spec if it has one, so that a worker imports the file itself; otherwise by pickle."""
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
    """The functions, in order (None for one that was not sent or does not load), and index -> why it does not load."""
    functions: list[Callable[..., Any] | None] = [None] * len(packed)
    failed: dict[int, str] = {}
    for index, (kind, content) in enumerate(packed):
        try:
            if kind != "absent":
                functions[index] = load_reward(content).function if kind == "spec" else pickle.loads(content)
        except Exception as fault:
            failed[index] = describe(fault)
    return functions, failed


def pack_data(value: Any) -> bytes:
    """Pickle a value. Objects whose classes are in the user's script need cloudpickle; plain data do not."""
    try:
        return pickle.dumps(value)
    except Exception:
        import cloudpickle

        return cloudpickle.dumps(value)
