"""Small files that appear whole or not at all, on a local disk or in a bucket (`gs://...`)."""

import os
from collections.abc import Iterator

from etils import epath

from grpo_jax.errors import UserError


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is on a disk of this machine: locks, appends and renames work there only."""
    return "://" not in os.fspath(path)


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Replace the file at `path` by `content`; a reader sees the old or the new one, even after a kill."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):  # an object store shows an object only once it is complete
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: epath.PathLike) -> None:
    """UserError when no file can be made at `path`; called before the work whose results go there."""
    path = epath.Path(path)
    if not is_local(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"{path}: its folder cannot be made ({fault.strerror}); give another file") from fault
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written; give another file")


def copy_folder(source: epath.PathLike, target: epath.PathLike, last: str | None = None) -> None:
    """Copy all files of a folder to another one, on a local disk or in a bucket; the file called `last` comes last."""
    source, target = epath.Path(source), epath.Path(target)
    for file in sorted(_files(source), key=lambda file: file.name == last):
        there = target / os.fspath(file.relative_to(source))
        there.parent.mkdir(parents=True, exist_ok=True)
        file.copy(there, overwrite=True)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry
