"""Says what is at a place where no model in Hugging Face's format is, and how it becomes one."""

from __future__ import annotations

import pathlib

LFS_POINTER = b"version https://git-lfs"


def advice(place: pathlib.Path) -> str | None:
    """What to do with the file or folder `place`, as the end of a message; None if nothing is recognised in it."""
    ggufs = [place] if place.suffix == ".gguf" else sorted(place.glob("*.gguf"))
    if ggufs:
        return (
            f"{ggufs[0].name} is a GGUF file: convert it with transformers' "
            f"AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={ggufs[0].name!r}).save_pretrained(OUT), and the "
            "tokenizer by AutoTokenizer in the same way"
        )
    if place.is_file():
        return "it is a file; give the folder that holds it"
    if (place / "adapter_config.json").is_file():
        return "the folder holds an adapter: give it as adapter, and its base as model"
    return None


def is_pointer(file: pathlib.Path) -> bool:
    """Whether Git has left a pointer in place of a large file."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER
