"""A hub that refuses, fails or hangs up ends a command with exit code 2 and one line; a disk that is full does too."""

import errno
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from grpo_jax.cli import main
from grpo_jax.commands.full_disk import full_disk

# The owner in a hub id says what the server does: an HTTP status, or hanging up.
NAMES = [("model", f"status-{status}/m") for status in (500, 401, 404)]
NAMES += [("data", f"status-{status}/m") for status in (401, 404)]
NAMES += [("model", "hang-up/m"), ("data", "hang-up/m"), ("data", "half/m")]
PROGRAM = """
import contextlib, io, json, sys
from grpo_jax.cli import main
for kind, name in json.loads(sys.argv[1]):
    words = ["generate", "--model", name, "--prompt", "a"] if kind == "model" else ["data", "show", name]
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = main(words)
    print(json.dumps([code, error.getvalue()]))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if "status-" in self.path:
            self.send_response(int(self.path.partition("status-")[2][:3]))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif "half" in self.path and "README" in self.path:
            self.send_response(200)
            for name, value in {"Content-Length": "99", "ETag": '"a"', "X-Repo-Commit": "a" * 40}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{")
        self.close_connection = True

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(kind, hub id) -> exit code and what was said, all by one program, since the hub's address is read once."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("hub")
    address = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", PROGRAM, json.dumps(NAMES)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_a_fault_of_the_hub_ends_a_command_in_a_line(name, answers):
    code, said = answers[name]
    assert code == 2
    assert said.splitlines()[-1].startswith(
        f"error: {'dataset' if name[0] == 'data' else 'model'} '{name[1]}': "
    )
    assert "Traceback" not in said
    assert ("HF_TOKEN" in said) == ("401" in name[1])


# ---- a full disk ----


class _LibraryError(Exception):
    pass


def _of_a_library():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as fault:
        raise _LibraryError("could not save") from fault


@pytest.mark.parametrize("verb", ["export", "data"])
def test_a_disk_that_is_full_ends_a_command_in_a_line(verb, monkeypatch, capsys):
    from grpo_jax.cli import VERBS

    def fail(args):
        if verb == "export":
            _of_a_library()
        raise OSError(errno.ENOSPC, "No space left on device", "out.jsonl")

    monkeypatch.setitem(VERBS, verb, ("", fail))
    words = ["export", "run", "out"] if verb == "export" else ["data", "clean", "countdown", "out.jsonl"]
    assert main(words) == 2
    place = "writing" if verb == "export" else "out.jsonl"
    assert capsys.readouterr().err.startswith(
        f"error: {place}: no space left on the disk; free some, and give"
    )


def test_other_errors_are_no_full_disk():
    assert full_disk(OSError(errno.ENOENT, "No such file or directory", "x")) is None
    assert full_disk(ValueError("space")) is None


def test_a_disk_that_fills_while_a_model_is_written_leaves_no_part_of_it(tiny_model, tmp_path, monkeypatch):
    from grpo_jax.errors import UserError
    from grpo_jax.models import hf

    cfg = hf.load_config(tiny_model)
    params = hf.load_params(tiny_model, cfg)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"out: could not be written: .*No space left on device"):
        hf.save_model(tmp_path / "out", cfg, params, tiny_model)
    assert list(tmp_path.iterdir()) == []
