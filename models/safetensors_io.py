"""Reads (by memory map) and writes (as a stream) the safetensors file format, without torch.

A file has an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data
(https://huggingface.co/docs/safetensors). Reading a header reads nothing else, so a folder of a 72B model opens in
milliseconds, and all checks come before the first large read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models.config_json import read_json
from grpo_jax.models.other_formats import advice, is_pointer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def as_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of "float32", "bfloat16", "float16" or an equal type. Raises UserError for any other."""
    for known in CODES:
        if dtype == known.name or (not isinstance(dtype, str) and known == dtype):
            return known
    raise UserError(f"dtype {dtype!r} is not supported; choose float32, bfloat16 or float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor in a file: the location, dtype and shape of its data."""

    file: pathlib.Path
    name: str
    code: str  # dtype as written in the file: "F32", "F16", "BF16", or one that cannot be read here
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype. Raises UserError unless it is a float of 16 or 32 bits."""
        if self.code not in DTYPES:
            raise UserError(
                f"{self.file}: tensor {self.name} is {self.code}; only {', '.join(DTYPES)} are read"
            )
        return DTYPES[self.code]

    def open(self) -> np.ndarray:
        """The tensor as a read-only view of the file: slicing it reads only the slice."""
        return _bytes_of(self.file)[self.start : self.stop].view(self.dtype).reshape(self.shape)


@functools.lru_cache(maxsize=256)  # one map per file, not per tensor; a 72B model has 37 shards
def _map(file: pathlib.Path, size: int, mtime_ns: int) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r")


def _bytes_of(file: pathlib.Path) -> np.ndarray:
    status = file.stat()  # part of the key, so that a rewritten file is mapped again
    return _map(file, status.st_size, status.st_mtime_ns)


def open_folder(folder: str | pathlib.Path) -> dict[str, Stored]:
    """All tensors of the checkpoint in `folder`, by name, from the headers alone.

    Reads `model.safetensors`, or the shards in `model.safetensors.index.json`.

    Raises:
        UserError: neither file exists, a shard is missing, or a file is damaged.
    """
    folder = pathlib.Path(folder)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        found = advice(folder) or "save the model as safetensors"
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; {found}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX}: has no weight_map; download the index again")
    return _open_shards(folder, weight_map)


def _open_shards(folder: pathlib.Path, weight_map: dict[str, Any]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if pathlib.Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder}: the shard {shard} named by {INDEX} is missing; download it")
        tensors |= read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise UserError(
                f"{folder / shard}: has no tensor {name}, though {INDEX} says so; download it again"
            )
    return tensors


def read_header(file: pathlib.Path) -> dict[str, Stored]:
    """The tensors of one file. Raises UserError, naming file and tensor, if the header does not fit the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or 8 + length > size:
            if is_pointer(file):
                raise UserError(f"{file}: a pointer of Git LFS; run git lfs pull, or download the file")
            raise UserError(f"{file}: truncated, or no safetensors file; download it again")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        stored = [_stored(file, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: the header is damaged ({error}); download it again") from None
    for tensor in stored:
        _check_offsets(tensor, 8 + length, size)
    return {tensor.name: tensor for tensor in stored}


def _stored(file: pathlib.Path, name: str, entry: dict[str, Any], base: int) -> Stored:
    start, stop = (base + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(d) for d in entry["shape"])
    return Stored(file=file, name=name, code=str(entry["dtype"]), shape=shape, start=start, stop=stop)


def _check_offsets(tensor: Stored, base: int, size: int) -> None:
    label = f"{tensor.file}: tensor {tensor.name}"
    if tensor.stop > size:
        raise UserError(
            f"{label} ends at byte {tensor.stop}, but the file has {size}: truncated; download it again"
        )
    if not base <= tensor.start <= tensor.stop or any(d < 0 for d in tensor.shape):
        raise UserError(f"{label} has impossible offsets or shape; download the file again")
    needed = math.prod(tensor.shape) * DTYPES[tensor.code].itemsize if tensor.code in DTYPES else None
    if needed not in (None, tensor.stop - tensor.start):
        raise UserError(
            f"{label} of shape {list(tensor.shape)} needs {needed} bytes, "
            f"but its offsets span {tensor.stop - tensor.start}; download the file again"
        )


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """One tensor to write: its entry in the header, and a function that returns its values when they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(file: pathlib.Path, tensors: Iterable[Outgoing]) -> None:
    """Write one file, with one tensor in memory at a time, and sync it to disk before returning."""
    tensors = list(tensors)
    with file.open("wb") as stream:
        _write_header(stream, tensors)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.values(), dtype=tensor.dtype).reshape(-1)
            stream.write(values.view(np.uint8).data)  # as bytes: bfloat16 has no buffer format
        stream.flush()
        os.fsync(stream.fileno())


def _write_header(stream: BinaryIO, tensors: list[Outgoing]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    offset = 0
    for t in tensors:
        end = offset + t.num_bytes
        header[t.name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires the data to begin at a multiple of 8 bytes
    stream.write(len(text).to_bytes(8, "little") + text)


def sampled_digest(folder: str | pathlib.Path) -> str:
    """SHA-256 over the size and 64 evenly spaced pieces of each weights file. Distinguishes models of the same shape in
    milliseconds, whatever their size."""
    found = hashlib.sha256()
    for file in sorted({tensor.file for tensor in open_folder(folder).values()}):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            for piece in range(64):
                data.seek(size * piece // 64)
                found.update(data.read(4096))
    return found.hexdigest()
