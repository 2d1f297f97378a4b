"""A virtual environment for each system that is not this project, built once and kept."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class System:
    """What runs a worker, and what that needs. No requirements: this project's own environment."""

    worker: Path
    requirements: tuple[str, ...] = ()


SYSTEMS = {
    "ours": System(HERE / "with_ours.py"),
    "trl": System(HERE / "with_trl.py", ("torch==2.13.0", "trl==1.16.0", "transformers==5.24.0")),
    "tunix": System(HERE / "with_tunix.py", ("google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8")),
}


class EnvironmentFailed(Exception):
    """The last line that the installer said."""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a system; its environment is built below `folder` unless it is complete there."""
    system = SYSTEMS[name]
    if not system.requirements:
        return Path(sys.executable)
    home = folder / name
    python, stamp, wanted = home / "bin" / "python", home / "complete", "\n".join(system.requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"{name}: installing {' '.join(system.requirements)}", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        _run(str(python), "-m", "pip", "install", "--quiet", *system.requirements)
        stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentFailed(said[-1] if said else f"{command[0]} ended with {done.returncode}")
