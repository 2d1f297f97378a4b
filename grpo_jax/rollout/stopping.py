"""Stop strings: the host searches each completion's text for them as its tokens arrive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """A completion ends with the first token that completes one of `strings`; that token is kept.

    decode: token ids -> text, special tokens included, so that each token has at least one byte.
    """

    strings: tuple[str, ...]  # none empty
    decode: Callable[[Sequence[int]], str]

    def end(self, ids: Sequence[int], seen: int) -> int | None:
        """The length of the completion `ids` if a stop string ends it, else None. The first `seen` tokens are known not
        to end it; the answer does not depend on how many those are."""
        start = max(seen - self._lookback, 0)
        low, high = seen, len(ids)
        if not self._contains_stop(ids[start:high]):
            return None
        while high - low > 1:  # a longer piece of text still contains the string: bisect
            middle = (low + high) // 2
            low, high = (low, middle) if self._contains_stop(ids[start:middle]) else (middle, high)
        return high

    @property
    def _lookback(self) -> int:
        """Tokens before the last one that may hold the beginning of a string, and one for decoders that trim the first.
        A character that the cut breaks cannot belong to the string."""
        return max(len(text.encode()) for text in self.strings) + 1

    def _contains_stop(self, ids: Sequence[int]) -> bool:
        text = self.decode(ids)
        return any(string in text for string in self.strings)
