"""Users and walls under which a program attacks a process that uses the sandbox, and the attack itself."""

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
class Confinement:
    """A user (None: the one who runs the tests) and the walls that may be put up."""

    name: str
    walls: Sequence[str]
    user: int | None = None

    def __str__(self) -> str:
        return self.name


def _reachable(path: str) -> bool:
    """Whether every user may reach the path."""
    real = Path(os.path.realpath(path))
    return real.exists() and all(p.stat().st_mode & stat.S_IXOTH for p in [real, *real.parents])


def _python() -> str | None:
    """An interpreter of Python 3.11 or later that every user can start."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if _reachable(path):
            test = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(test).returncode == 0:
                return path
    return None


PYTHON = _python()
EVERY_WALL = ("namespaces", "root", "user", "landlock", "seccomp")
WITHOUT_NAMESPACES = ("user", "landlock", "seccomp")
_CAN_SWITCH_USER = PYTHON and shutil.which("setpriv") and _reachable(str(ROOT))
CONFINEMENTS = [Confinement("all", EVERY_WALL)]
if IS_ROOT and _CAN_SWITCH_USER:
    CONFINEMENTS += [
        Confinement("no-namespaces", WITHOUT_NAMESPACES),
        Confinement("nobody", EVERY_WALL, NOBODY),
        Confinement("nobody-no-namespaces", WITHOUT_NAMESPACES, NOBODY),
    ]
if not IS_ROOT:
    CONFINEMENTS += [Confinement("no-namespaces", WITHOUT_NAMESPACES)]


def attack(
    confinement: Confinement,
    code: str,
    stdin: str = "",
    strict: bool = False,
    walls: Sequence[str] | None = None,
    denied: Sequence[str] = (),
    **limits: Any,
) -> dict[str, Any]:
    """Run a program in `victim.py`; its outcome, after asserting that nothing outside was harmed."""
    folder = tempfile.mkdtemp(prefix="victim-")
    try:
        marker = Path(folder) / "marker"
        marker.write_text("untouched")
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        os.chmod(folder, 0o755)
        for path in (marker, scratch):
            os.chown(path, *(2 * [-1 if confinement.user is None else confinement.user]))
        wanted = {
            "code": code.replace("@MARKER@", str(marker)),
            "stdin": stdin,
            "strict": strict,
            "walls": list(confinement.walls if walls is None else walls),
            "marker": str(marker),
            "denied": list(denied),
            "limits": {"cpu": 2, "wall": 4.0, "memory": 256 * 2**20} | limits,
        }
        found = _victim(confinement, wanted, scratch)
        assert marker.read_text() == "untouched"
    finally:
        shutil.rmtree(folder)
    unharmed(found)
    return found


def _victim(confinement: Confinement, wanted: dict[str, Any], scratch: Path) -> dict[str, Any]:
    become = [] if confinement.user is None else [
        "setpriv", f"--reuid={confinement.user}", f"--regid={confinement.user}", "--clear-groups"
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
    assert done.returncode == 0, "the process that used the sandbox was harmed"
    return json.loads(done.stdout)


def unharmed(found: dict[str, Any]) -> None:
    """Assert that nothing is left of the program and that its surroundings are unchanged."""
    assert found["bystander"] is None
    assert found["survivors"] == []
    assert found["folders"] == []
    assert found["descriptors"] == [0, 1, 2, found["file"]]
    assert found["took"] < 4 + 10
