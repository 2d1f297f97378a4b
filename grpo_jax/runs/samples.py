"""Samples of a run as plain text, readable while it runs: some completions, and some that succeeded.

Mini-R1 writes `completion_samples.txt` and `success_completion_samples.txt`, each completion with a chance of one in
ten. Here the choice is a function of (seed, step), and a resumed run drops the samples after its checkpoint.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from grpo_jax.runs.files import is_local, write_atomically
from grpo_jax.runs.folder import RunFolder

ALL, SUCCESSES = "completion_samples.txt", "success_completion_samples.txt"


class Samples:
    """The two files of a run, on a local disk or in a bucket. Only a writer of the run writes them."""

    def __init__(self, run: RunFolder):
        self._run = run

    def append(self, name: str, texts: Sequence[str]) -> None:
        """Append texts to one of the files."""
        if not texts or not self._run.is_writer:
            return
        file, text = self._run.path / name, "".join(texts)
        if is_local(file):
            with file.open("a", encoding="utf-8") as end:
                end.write(text)
        else:  # objects cannot grow
            write_atomically(file, _bytes(file) + text.encode())

    def sizes(self) -> dict[str, int]:
        """Size of each file in bytes, stored with a checkpoint."""
        return {name: len(_bytes(self._run.path / name)) for name in (ALL, SUCCESSES)}

    def truncate(self, sizes: Mapping[str, int]) -> None:
        """Cut the files to `sizes`: the steps after them run again."""
        for name in (ALL, SUCCESSES):
            file = self._run.path / name
            if self._run.is_writer and file.exists() and len(_bytes(file)) > sizes.get(name, 0):
                write_atomically(file, _bytes(file)[: sizes.get(name, 0)])


def _bytes(file: epath.Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def chosen(seed: int, step: int, rows: int, rate: float, stream: int) -> np.ndarray:
    """[B] bool: each row of a step is chosen with probability `rate`; the result depends on the arguments only."""
    words = np.random.Philox(key=np.array([seed, 2 * step + stream], np.uint64)).random_raw(rows)
    return words < np.uint64(min(int(rate * 2**64), 2**64 - 1)) if rate < 1 else np.ones(rows, bool)


def entry(title: str, prompt: str, completion: str) -> str:
    """A sample as it stands in the file."""
    return f"\n\n==== {title} ====\n{prompt}{completion}\n"
