"""A worker's reply to a unit: its scores and logs, or what went wrong.

    {"unit": number, "values": one `entry` a row, "extras": .., "metrics": ..}
    {"unit": number, "error": sentence}
    {"unit": number, "timeout": true}

An `OFFER` of more units, made while async units still run, is answered with `LISTENING`: the worker then reads
nothing else until the request has come. So a request is never sent to a worker that is busy inside a function, where
it might stay unread and block the sender.

Replies are JSON, so that the trainer reads only plain values from a process that runs the user's code.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.rewards.load import describe, has_parameter, parameters
from grpo_jax.rewards.pool.log_entries import entry, kind_of
from grpo_jax.rewards.pool.logs import Logs

OFFER = b"more units"
LISTENING = b'{"listening": true}'


@dataclass
class Call:
    """One call of a function: the number of its unit, the number of its rows, and what it logs."""

    unit: int
    rows: int = 0
    logs: Logs = field(default_factory=Logs)

    def begin(
        self, function: Callable[..., Any], columns: Mapping[str, Any], trainer_state: Any, timeout: float
    ) -> Any:
        """Call the function with those arguments that it takes."""
        self.rows = len(columns["completions"])
        arguments = {**columns, "trainer_state": trainer_state, **self.logs.callables}
        if has_parameter(function, "reward_timeout"):
            arguments["reward_timeout"] = timeout
        names = parameters(function)[1]
        if names is not None:
            arguments = {name: value for name, value in arguments.items() if name in names}
        return function(**arguments)

    def reply(self, result: Any) -> bytes:
        """The reply for the returned `result`. Raises if a logged value cannot be encoded."""
        fault = _wrong(result, self.rows) or self.logs.wrong(self.rows)
        if fault:
            return encode({"unit": self.unit, "error": fault})
        values = [entry(score) for score in result]
        return encode({"unit": self.unit, "values": values} | self.logs.content)


def failed(unit: int, fault: BaseException) -> bytes:
    """The reply for a unit that raised."""
    return encode({"unit": unit, "error": describe(fault)})


def timed_out(unit: int) -> bytes:
    """The reply for a unit that was cancelled at its timeout."""
    return encode({"unit": unit, "timeout": True})


def encode(reply: Mapping[str, Any]) -> bytes:
    """A reply as JSON. Logged values of other types become lists and numbers, or else text."""
    return json.dumps(reply, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)  # arrays of any library have it


def _wrong(result: Any, rows: int) -> str | None:
    if isinstance(result, str | bytes | dict | set) or not hasattr(result, "__len__"):
        return f"returned {kind_of(result)}, not a list of numbers"
    return f"returned {len(result)} scores for {rows} completions" if len(result) != rows else None
