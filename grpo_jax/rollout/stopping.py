"""Strings that end a completion, looked for on the host in what was drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """A completion ends with the first token that completes one of `strings`; that token stays.

    decode: token ids -> text, special tokens with theirs, so that each token has at least one byte.
    """

    strings: tuple[str, ...]  # none empty
    decode: Callable[[Sequence[int]], str]

    def end(self, ids: Sequence[int], seen: int) -> int | None:
        """How many of the tokens `ids` a completion has that ends among them; None: it goes on. The first `seen`
        are known not to end it. The answer does not depend on how many those are."""
        start = max(seen - self._reach, 0)
        low, high = seen, len(ids)
        if not self._complete(ids[start:high]):
            return None
        while high - low > 1:  # what is complete stays so: halve
            middle = (low + high) // 2
            low, high = (low, middle) if self._complete(ids[start:middle]) else (middle, high)
        return high

    @property
    def _reach(self) -> int:
        """Tokens before the last one that may hold a part of a string, and one for decoders that trim what comes
        first. A character that the cut leaves broken is not one of the string's."""
        return max(len(text.encode()) for text in self.strings) + 1

    def _complete(self, ids: Sequence[int]) -> bool:
        text = self.decode(ids)
        return any(string in text for string in self.strings)
