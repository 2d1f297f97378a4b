"""The sandbox as a server, to be put into a container: python -m grpo_jax.sandbox.serve --port 8800

It speaks the protocol of `remote.py` at every path, without authentication, and listens on this machine only unless
`--host` says otherwise. It refuses to start where a program could reach files, the network or processes of its machine;
`--any` starts it anyway, for a container that holds nothing else.
"""

import argparse
import json
import os
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from grpo_jax.sandbox.local import run
from grpo_jax.sandbox.outcome import Limits, SandboxError
from grpo_jax.sandbox.protections import described

_LONGEST = 64 * 2**20


class SandboxServer(ThreadingHTTPServer):
    """Runs up to `slots` programs at a time (0: one per core); others wait."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], strict: bool = True, slots: int = 0):
        super().__init__(address, Handler)
        self.strict = strict
        self.slots = threading.BoundedSemaphore(slots or os.cpu_count() or 1)


class Handler(BaseHTTPRequestHandler):
    server: SandboxServer

    def do_POST(self) -> None:
        """Run one program."""
        try:
            request = self._request()
            limits = Limits(**request.get("limits", {}))
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            self._answer(400, {"error": f"{type(fault).__name__}: {fault}"})
            return
        try:
            with self.server.slots:
                outcome = run(request["code"], request["stdin"], limits, strict=self.server.strict)
        except SandboxError as fault:
            self._answer(500, {"error": str(fault)})
            return
        self._answer(200, asdict(outcome))

    def _request(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _LONGEST:
            raise ValueError(f"{length} bytes; {_LONGEST} at most")
        request = json.loads(self.rfile.read(length))
        if request.get("language", "python") != "python":
            raise ValueError(f"language = {request['language']!r}; only python")
        request.setdefault("stdin", "")
        if not (isinstance(request["code"], str) and isinstance(request["stdin"], str)):
            raise ValueError("code and stdin must be texts")
        return request

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: there are many programs."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8800, help="%(default)s; 0: any free one")
    parser.add_argument("--slots", type=int, default=0, help="programs at a time; 0: one per core")
    parser.add_argument("--any", action="store_true", help="start with whatever walls there are")
    args = parser.parse_args()
    walls = run("", strict=not args.any).walls
    with SandboxServer((args.host, args.port), strict=not args.any, slots=args.slots) as server:
        print(f"http://{args.host}:{server.server_port}/ runs programs with {described(walls)}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
