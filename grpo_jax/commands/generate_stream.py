"""Prints completions on the terminal while their tokens are sampled."""

from collections.abc import Callable, Sequence

_BETWEEN = "\n---\n"


class StreamPrinter:
    """Prints `num_generations` completions of each of `prompts` prompts, in order, a line between them. A single one is
    printed as its tokens come; of several, each is printed once it and all before it have ended.

    Args:
        decode: token ids -> text.
        enabled: False on all hosts but one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, prompts: int, num_generations: int, enabled: bool
    ):
        self._decode, self._num_generations, self._enabled = decode, num_generations, enabled
        self._ids: list[list[int]] = [[] for _ in range(prompts * num_generations)]
        self._ended = [False] * len(self._ids)
        self._next = 0  # the first completion that is not printed whole
        self._printed = 0  # how many of its characters are printed

    def __call__(self, prompt: int, sample: int, ids: Sequence[int], ended: bool) -> None:
        """Take the next tokens of a completion, as a sampler's `on_tokens` gets them."""
        number = prompt * self._num_generations + sample
        self._ids[number] += ids
        self._ended[number] = ended
        if len(self._ids) == 1 and not ended:
            self._print_part()
        while self._next < len(self._ids) and self._ended[self._next]:
            self._print_whole()

    def end(self) -> None:
        """End the output with a line break; all tokens have come."""
        self._print("\n")

    def _print_part(self) -> None:
        """Print the text so far, unless it ends within a character, whose first bytes decode to U+FFFD."""
        text = self._decode(self._ids[0])
        if not text.endswith("\ufffd"):
            self._print(text[self._printed :])
            self._printed = len(text)

    def _print_whole(self) -> None:
        text = self._decode(self._ids[self._next])[self._printed :]
        self._print(_BETWEEN + text if self._next else text)
        self._next, self._printed = self._next + 1, 0

    def _print(self, text: str) -> None:
        if self._enabled and text:
            print(text, end="", flush=True)
