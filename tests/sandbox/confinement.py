"""The users and the walls under which programs are let loose on a process that uses the sandbox."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
IS_ROOT = os.geteuid() == 0


@dataclasses.dataclass(frozen=True)
class Way:
    """A user (None: who runs the tests) and the walls that may be put up."""

    name: str
    walls: Sequence[str]
    user: int | None = None

    def __str__(self) -> str:
        return self.name


def _reachable(path: str) -> bool:
    """Whether anybody may go there."""
    real = Path(os.path.realpath(path))
    return real.exists() and all(p.stat().st_mode & stat.S_IXOTH for p in [real, *real.parents])


def _python() -> str | None:
    """An interpreter that every user can start, as old as ours at most in its second number."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if _reachable(path):
            test = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(test).returncode == 0:
                return path
    return None


PYTHON = _python()
EVERY = ("namespaces", "root", "user", "landlock", "seccomp")
FALLBACK = ("user", "landlock", "seccomp")
_OTHERS = PYTHON and shutil.which("setpriv") and _reachable(str(ROOT))
WAYS = [Way("all", EVERY)]
if IS_ROOT and _OTHERS:
    WAYS += [
        Way("no-namespaces", FALLBACK),
        Way("nobody", EVERY, NOBODY),
        Way("nobody-no-namespaces", FALLBACK, NOBODY),
    ]
if not IS_ROOT:
    WAYS += [Way("no-namespaces", FALLBACK)]


def attack(
    way: Way,
    code: str,
    stdin: str = "",
    strict: bool = False,
    walls: Sequence[str] | None = None,
    denied: Sequence[str] = (),
    **limits: Any,
) -> dict[str, Any]:
    """Let a program loose; how it fared, after it has been seen that nothing outside was harmed."""
    folder = tempfile.mkdtemp(prefix="victim-")
    try:
        marker = Path(folder) / "marker"
        marker.write_text("untouched")
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        os.chmod(folder, 0o755)
        for path in (marker, scratch):
            os.chown(path, *(2 * [-1 if way.user is None else way.user]))
        wanted = {
            "code": code.replace("@MARKER@", str(marker)),
            "stdin": stdin,
            "strict": strict,
            "walls": list(way.walls if walls is None else walls),
            "marker": str(marker),
            "denied": list(denied),
            "limits": {"cpu": 2, "wall": 4.0, "memory": 256 * 2**20} | limits,
        }
        found = _victim(way, wanted, scratch)
        assert marker.read_text() == "untouched"
    finally:
        shutil.rmtree(folder)
    unharmed(found)
    return found


def _victim(way: Way, wanted: dict[str, Any], scratch: Path) -> dict[str, Any]:
    become = [] if way.user is None else [
        "setpriv", f"--reuid={way.user}", f"--regid={way.user}", "--clear-groups"
    ]  # fmt: skip
    done = subprocess.run(
        [*become, PYTHON or sys.executable, str(Path(__file__).with_name("victim.py"))],
        input=json.dumps(wanted),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        start_new_session=True,
        env={"PYTHONPATH": str(ROOT), "SECRET": "in-the-parent", "TMPDIR": str(scratch), "PATH": os.environ["PATH"],
             "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, "the process that asked was harmed"
    return json.loads(done.stdout)


def unharmed(found: dict[str, Any]) -> None:
    """Nothing is left of the program, and its surroundings are as they were."""
    assert found["bystander"] is None
    assert found["survivors"] == []
    assert found["folders"] == []
    assert found["descriptors"] == [0, 1, 2, found["file"]]
    assert found["took"] < 4 + 10
