"""A sandbox on a server, over HTTP. docs/code_execution.md has the protocol; those of two other servers work too.

    POST {"language": "python", "code": ..., "stdin": ..., "limits": {"cpu": 4.0, ...}}
    200  {"stdout": ..., "stderr": ..., "exit_code": 0, "signal": null, "ended": "exit", "seconds": 0.1}

A URL that ends in `/run_code` is SandboxFusion's, one that ends in `/api/v2/execute` Piston's.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, get_args

from grpo_jax.sandbox.outcome import Ended, Limits, Outcome, SandboxError

TRIES = 3
"""Attempts per program: a server that is busy, restarts or loses the connection is asked again after a pause."""
PAUSE_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""Time that the server gets beyond the program's own time limit."""
_LONGEST = 64 * 2**20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_BROKEN = (OSError, http.client.HTTPException)
"""There is no connection, it ends early, or the server does not speak HTTP."""


class Remote:
    """A sandbox behind a URL. Proxies of the environment are not used."""

    def __init__(self, url: str):
        self.url = url
        self.dialect = next((d for end, d in _DIALECTS.items() if url.rstrip("/").endswith(end)), OURS)
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(self, code: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
        """Like `local.run`. Raises SandboxError if the server gives no valid answer."""
        limits = limits or Limits()
        ask, read = self.dialect
        begun = time.monotonic()
        answer = self._post(json.dumps(ask(code, stdin, limits)).encode(), limits.patience + GRACE_SECONDS)
        try:
            return read(answer, limits, time.monotonic() - begun)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise SandboxError(f"{self.url} answered {str(answer)[:200]}: {fault!r}") from None

    def _post(self, body: bytes, seconds: float) -> Any:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._once(body, seconds)
            except urllib.error.HTTPError as fault:
                if fault.code not in _AGAIN or not left:
                    raise SandboxError(f"{self.url}: status {fault.code}: {_beginning(fault)}") from None
            except TimeoutError:
                raise SandboxError(f"{self.url}: no answer in {seconds:g} s") from None
            except (ValueError, RecursionError) as fault:
                raise SandboxError(f"{self.url}: the answer is no JSON: {fault}") from None
            except _BROKEN as fault:
                if not left:
                    raise SandboxError(f"{self.url}: {type(fault).__name__}: {fault}") from None
            time.sleep(PAUSE_SECONDS)
        raise AssertionError("unreachable")

    def _once(self, body: bytes, seconds: float) -> Any:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=seconds) as answer:
            text = answer.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} bytes")
        return json.loads(text)


def _beginning(fault: urllib.error.HTTPError) -> str:
    """The beginning of the body of an error response, as far as it can be read."""
    try:
        return fault.read(200).decode("utf-8", "replace")
    except _BROKEN:
        return "(and the rest was lost)"


# ---- ours ----


def _ask(code: str, stdin: str, limits: Limits) -> dict[str, Any]:
    return {"language": "python", "code": code, "stdin": stdin, "limits": asdict(limits)}


def _read(answer: Mapping[str, Any], limits: Limits, seconds: float) -> Outcome:
    ended: Ended = answer["ended"]
    if ended not in get_args(Ended):
        raise ValueError(f"ended = {ended!r}")
    code, signal = answer["exit_code"], answer.get("signal")
    if not isinstance(code, int | None) or isinstance(code, bool):
        raise ValueError(f"exit_code = {code!r}")
    return Outcome(
        stdout=_text(answer["stdout"]),
        stderr=_text(answer["stderr"]),
        exit_code=code,
        signal=signal,
        ended=ended,
        seconds=seconds,
    )


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{given!r:.40} is no text")
    return given


# ---- SandboxFusion's run_code ----


def _ask_fusion(code: str, stdin: str, limits: Limits) -> dict[str, Any]:
    return {"language": "python", "code": code, "stdin": stdin, "run_timeout": limits.patience}


def _read_fusion(answer: Mapping[str, Any], limits: Limits, seconds: float) -> Outcome:
    if answer["status"] == "SandboxError":
        raise ValueError(answer.get("message") or "SandboxError")
    result = answer["run_result"]
    late = result["status"] == "TimeLimitExceeded"
    if result["status"] not in ("Finished", "TimeLimitExceeded"):
        raise ValueError(result["status"])
    return Outcome(
        stdout=_text(result.get("stdout") or ""),
        stderr=_text(result.get("stderr") or ""),
        exit_code=None if late else int(result["return_code"]),
        signal=None,
        ended="wall" if late else "exit",
        seconds=seconds,
    )


# ---- Piston's execute ----


def _ask_piston(code: str, stdin: str, limits: Limits) -> dict[str, Any]:
    return {
        "language": "python",
        "version": "*",
        "files": [{"name": "main.py", "content": code}],
        "stdin": stdin,
        "run_timeout": int(1000 * limits.patience),
        "run_memory_limit": limits.memory,
    }


def _read_piston(answer: Mapping[str, Any], limits: Limits, seconds: float) -> Outcome:
    result = answer["run"]
    code = result["code"]
    ended: Ended = "exit" if code is not None else "wall" if result.get("signal") == "SIGKILL" else "signal"
    return Outcome(
        stdout=_text(result["stdout"]),
        stderr=_text(result["stderr"]),
        exit_code=None if code is None else int(code),
        signal=None,
        ended=ended,
        seconds=seconds,
    )


Dialect = tuple[Callable[[str, str, Limits], dict[str, Any]], Callable[[Any, Limits, float], Outcome]]
"""(makes the request's content, reads the answer's)."""
OURS: Dialect = (_ask, _read)
_DIALECTS: dict[str, Dialect] = {
    "/run_code": (_ask_fusion, _read_fusion),
    "/api/v2/execute": (_ask_piston, _read_piston),
}
