"""The sandbox over HTTP: our own server, and fakes of others that fail in every known way."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from grpo_jax.rewards.functions.code import code
from grpo_jax.sandbox import Limits, SandboxError, open_sandbox, remote
from grpo_jax.sandbox.remote import Remote
from grpo_jax.sandbox.serve import SandboxServer


def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def ours():
    yield from serving(SandboxServer(("127.0.0.1", 0), strict=False, slots=2))


@pytest.fixture
def other(monkeypatch):
    """A server that gives the answers of a list, one after another, and keeps the requests."""
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append((self.path, json.loads(body)))
            status, answer = self.server.answers.pop(0)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            if status == "hang":
                self.server.release.wait(5)
                return
            if status == "raw":
                self.wfile.write(data)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.release = [], [], threading.Event()
    yield from serving(server)


def url(server, path="/"):
    return f"http://127.0.0.1:{server.server_port}{path}"


FINE = {"stdout": "1\n", "stderr": "", "exit_code": 0, "signal": None, "ended": "exit", "seconds": 0.1}


def test_a_program_runs_on_our_server(ours):
    outcome = Remote(url(ours)).run("print(input()[::-1])", "abc")
    assert (outcome.stdout, outcome.exit_code, outcome.ok) == ("cba\n", 0, True)
    assert Remote(url(ours)).run("while True: pass", limits=Limits(cpu=1)).ended == "cpu"
    assert Remote(url(ours)).run("raise SystemExit(3)").exit_code == 3
    assert Remote(url(ours)).run("import os; os.kill(os.getpid(), 9)").signal == 9


def test_the_code_reward_runs_on_our_server(ours):
    pairs = {"inputs": ["1\n"], "outputs": ["2\n"]}
    texts = ["```python\nprint(2 * int(input()))\n```", "```python\nprint(3)\n```"]
    scores = code(["p"] * 2, texts, sandbox=url(ours), input_output=[pairs] * 2)
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize(
    "asked",
    [b"{", b"[]", b"{}", b'{"code": 1}', b'{"code": "", "limits": {"cpu": 0}}', b'{"code": "", "limits": {"x": 1}}',
     b'{"code": "", "language": "cobol"}', b'{"code": "", "limits": 3}'],
)  # fmt: skip
def test_our_server_says_what_is_wrong_with_a_request(ours, asked):
    with pytest.raises(SandboxError, match=r'status 400: \{"error"'):
        Remote(url(ours))._post(asked, 5)


def test_a_request_has_the_program_its_input_and_its_limits(other):
    other.answers = [(200, FINE)]
    outcome = Remote(url(other)).run("code", "in", Limits(cpu=3, memory=7))
    path, asked = other.asked[0]
    assert path == "/"
    assert {"language": "python", "code": "code", "stdin": "in"}.items() <= asked.items()
    assert (asked["limits"]["cpu"], asked["limits"]["memory"]) == (3, 7)
    assert outcome.stdout == "1\n"


def test_a_server_that_is_busy_is_asked_again(other):
    other.answers = [(503, b""), (429, b""), (200, FINE)]
    assert Remote(url(other)).run("x").ok
    other.answers = [(503, b"")] * 3
    with pytest.raises(SandboxError, match="status 503"):
        Remote(url(other)).run("x")
    assert other.answers == []


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (404, b"no such path", "status 404: no such path"),
        (200, b"<html>", "the answer is no JSON"),
        (200, b"[" * 100_000, "the answer is no JSON"),
        (200, [], "answered"),
        (200, {}, "answered"),
        (200, FINE | {"stdout": 1}, "is no text"),
        (200, FINE | {"ended": "well"}, "ended = 'well'"),
        (200, FINE | {"exit_code": "0"}, "exit_code = '0'"),
    ],
)
def test_an_unreadable_answer_is_a_sandbox_error(other, status, answer, why):
    other.answers = [(status, answer)]
    with pytest.raises(SandboxError, match=why):
        Remote(url(other)).run("x")
    assert len(other.asked) == 1


CHUNKED = b"HTTP/1.1 %d x\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "BadStatusLine": b"garbage\r\n\r\n",
    "IncompleteRead": CHUNKED % 200 + b"5\r\n{",
    "RemoteDisconnected": b"",
    "LineTooLong": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
    "status 503: ": CHUNKED % 503 + b"zz\r\n",
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_answer_is_asked_for_again_and_then_a_sandbox_error(other, why):
    other.answers = [("raw", BROKEN[why])] * 2 + [(200, FINE)]
    assert Remote(url(other)).run("x").ok
    other.answers = [("raw", BROKEN[why])] * 3
    with pytest.raises(SandboxError, match=f"127.0.0.1.*{why}"):
        Remote(url(other)).run("x")
    assert other.answers == []


def test_a_server_that_hangs_is_given_up(other, monkeypatch):
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.2)
    other.answers = [("hang", b"")]
    with pytest.raises(SandboxError, match=r"no answer in 0\.3 s"):
        Remote(url(other)).run("x", limits=Limits(wall=0.1))
    other.release.set()


def test_an_unreachable_server_is_named(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9"):
        open_sandbox("http://127.0.0.1:9/")("x")


def test_requests_and_answers_of_sandbox_fusion_are_translated(other):
    run = {"status": "Finished", "execution_time": 0.1, "return_code": 0, "stdout": "1\n", "stderr": ""}
    late = run | {"status": "TimeLimitExceeded", "return_code": None, "stdout": None}
    other.answers = [
        (200, {"status": "Success", "message": "", "run_result": run}),
        (200, {"status": "Failed", "message": "", "run_result": run | {"return_code": 1}}),
        (200, {"status": "Failed", "message": "", "run_result": late}),
        (200, {"status": "SandboxError", "message": "full", "run_result": None}),
    ]
    sandbox = Remote(url(other, "/run_code"))
    assert sandbox.run("x", "in", Limits(wall=3)).ok
    assert other.asked[0] == (
        "/run_code",
        {"language": "python", "code": "x", "stdin": "in", "run_timeout": 3},
    )
    assert sandbox.run("x").exit_code == 1
    assert sandbox.run("x").ended == "wall"
    with pytest.raises(SandboxError, match="full"):
        sandbox.run("x")


def test_requests_and_answers_of_piston_are_translated(other):
    run = {"stdout": "1\n", "stderr": "", "output": "1\n", "code": 0, "signal": None}
    other.answers = [
        (200, {"language": "python", "version": "3.12.0", "run": run}),
        (200, {"run": run | {"code": None, "signal": "SIGKILL"}}),
    ]
    sandbox = Remote(url(other, "/api/v2/execute"))
    assert sandbox.run("x", "in", Limits(wall=3)).ok
    path, asked = other.asked[0]
    assert path == "/api/v2/execute"
    assert asked["files"] == [{"name": "main.py", "content": "x"}]
    assert (asked["stdin"], asked["run_timeout"]) == ("in", 3000)
    assert sandbox.run("x").ended == "wall"
