"""Loads rows from a source: a string that names a file, a folder, a TFDS or hub data set, or a task.

gsm8k/train.jsonl               a .jsonl, .json, .parquet or .csv file (the split is then ignored)
gsm8k/                          a folder with <split>.jsonl, ...; `gs://` paths work for both
tfds:gsm8k  tfds:glue/cola      TensorFlow Datasets, without TensorFlow
openai/gsm8k:main               a hub id, and its config after the colon
countdown:numbers=3,max=9       a task (write `./countdown` for a folder of that name)
"""

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpo_jax.data.files import READERS, files_of, read_file, read_folder
from grpo_jax.data.tasks import arithmetic, countdown, knights, tiny_countdown, tiny_knights, tiny_math
from grpo_jax.errors import UserError, hub_reason, nearest

if TYPE_CHECKING:
    from etils import epath

Row = dict[str, Any]

TASKS: dict[str, Callable[[str, str, int], list[Row]]] = {
    arithmetic.NAME: arithmetic.make_rows,
    "countdown": countdown.make_rows,
    knights.NAME: knights.make_rows,
    tiny_countdown.NAME: tiny_countdown.make_tiny_rows,
    tiny_countdown.TRACES: tiny_countdown.make_traces,
    tiny_knights.NAME: tiny_knights.make_tiny_rows,
    tiny_math.NAME: tiny_math.make_tiny_rows,
}
"""Tasks that generate their rows: name -> f(options, split, seed)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


def load_rows(spec: str | os.PathLike[str], split: str = "train", *, seed: int = 0) -> list[Row]:
    """All rows of one split, in the source's own order. Only tasks use `seed`.

    Raises:
        UserError: there is no such source (with the nearest name), no such split (with the existing ones), a row
            cannot be read (with file and line), the source cannot be reached, or it has no rows.
    """
    rows = _load(os.fspath(spec), split, seed)
    if not rows:
        raise UserError(f"dataset '{spec}': the split '{split}' has no rows")
    return rows


def check_source(spec: str, split: str = "train") -> None:
    """Raise UserError if there is no such file, folder or task, or a task's options are wrong. Does not access the hub
    or TFDS."""
    name, _, options = spec.partition(":")
    if name in TASKS:
        TASKS[name](options, split, 0)
    elif name != "tfds" and _existing(spec) is None and not _is_hub_id(spec):
        raise UserError(f"dataset '{spec}': {_missing(spec)}")


def is_single_file(spec: str) -> bool:
    """Whether `spec` names one file, which has no splits."""
    if spec.partition(":")[0] in {"tfds", *TASKS}:
        return False
    path = _existing(spec)
    return path is not None and not path.is_dir()


def _load(spec: str, split: str, seed: int) -> list[Row]:
    name, _, options = spec.partition(":")
    if name == "tfds":
        return _from_tfds(options, split)
    if name in TASKS:
        return TASKS[name](options, split, seed)
    path = _existing(spec) if spec else None
    if path is not None:
        return _from_path(path, split)
    if _is_hub_id(spec):
        return _from_hub(name, options or None, split)
    raise UserError(f"dataset '{spec}': {_missing(spec)}")


def _is_hub_id(spec: str) -> bool:
    return bool(_HUB_ID.fullmatch(spec)) and os.path.splitext(spec)[1] not in READERS


def _existing(spec: str) -> "epath.Path | None":
    from etils import epath

    path = epath.Path(spec).expanduser()
    try:
        return path if path.exists() else None
    except (ImportError, OSError) as error:  # a cloud path whose client or credentials are missing
        raise UserError(f"dataset '{spec}': cannot be reached: {_first_line(error)}") from None


def _from_path(path: "epath.Path", split: str) -> list[Row]:
    if not path.is_dir():
        return read_file(path)
    rows = read_folder(path, split)
    if rows is not None:
        return rows
    if len(configs := _configs(path, split)) > 1 and not _names_configs(path / "README.md"):
        raise UserError(
            f"dataset '{path}': several data sets are there, {', '.join(configs)}; name one, such as "
            f"{path / configs[0]}"
        )
    if (path / "README.md").exists() or (path / "data").exists():  # a clone of a hub repository
        return _from_hub(str(path), None, split)
    # Not passed to `datasets`, which would read all files below any folder, whatever they are.
    inside = ", ".join(sorted(item.name for item in path.iterdir())[:10]) or "nothing"
    raise UserError(f"dataset '{path}': no {split}.jsonl, .json, .parquet or .csv there; it holds {inside}")


def _configs(path: "epath.Path", split: str) -> list[str]:
    """The folders in a folder that have the split."""
    return [item.name for item in sorted(path.iterdir()) if item.is_dir() and files_of(item, split)]


def _names_configs(readme: "epath.Path") -> bool:
    """Whether the description of a hub repository says which files belong together."""
    return readme.exists() and bool(re.search(rb"^configs:", readme.read_bytes(), re.MULTILINE))


def _missing(spec: str) -> str:
    if "/" not in spec and os.path.splitext(spec)[1] not in READERS:
        close = nearest(spec.partition(":")[0], [*TASKS, *_neighbours(spec)])
        tasks = ", ".join(TASKS)
        return f"neither a task ({tasks}) nor a file or folder here{close}; a hub id is written owner/name"
    if os.path.islink(os.path.expanduser(spec)):
        return f"a link to {os.readlink(os.path.expanduser(spec))}, which is not there"
    return f"no such file or folder{nearest(os.path.basename(spec.rstrip('/')), _neighbours(spec))}"


def _neighbours(spec: str) -> list[str]:
    """Names of the files beside a path that does not exist; empty if its folder does not exist either."""
    from etils import epath

    try:
        return [item.name for item in epath.Path(spec).expanduser().parent.iterdir()]
    except OSError:
        return []


def _from_hub(name: str, config: str | None, split: str) -> list[Row]:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split).to_list()
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        close = nearest(os.path.basename(name), _neighbours(name))
        raise UserError(
            f"dataset '{name}': no such local path{close}, and the hub cannot be reached or does not have it "
            f"({hub_reason(error)}); give the path of a local copy"
        ) from None
    except Exception as error:  # whatever the network, the cache or the hub may raise
        # Its first line lists the splits that exist, its second the configs where one has to be named.
        lines = str(error).strip().splitlines()
        which = f" {lines[1]}" if len(lines) > 1 and "config name is missing" in lines[0].lower() else ""
        raise UserError(f"dataset '{name}': {hub_reason(error)}{which}") from None


def _from_tfds(name: str, split: str) -> list[Row]:
    """Read through `tfds.data_source`: array_record files, NumPy values, no TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import DatasetNotFoundError

    try:
        source = tfds.data_source(name, split=split)
    except DatasetNotFoundError:
        close = nearest(name.partition("/")[0], tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"dataset 'tfds:{name}': TensorFlow Datasets has no '{name}'{close}; is TFDS_DATA_DIR set?"
        ) from None
    except Exception as error:  # a builder runs its own code and may raise anything
        raise UserError(f"dataset 'tfds:{name}': {_first_line(error)}") from None
    return [_plain(row) for row in source]


def _plain(value: Any) -> Any:
    """A value with NumPy arrays and bytes converted to plain Python, recursively. Bytes that are not text (an image)
    stay bytes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
