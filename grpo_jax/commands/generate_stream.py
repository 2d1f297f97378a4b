"""Text on the terminal while its tokens are drawn."""

from collections.abc import Callable, Sequence

_BETWEEN = "\n---\n"


class Printed:
    """Prints the completions of `prompts` prompts with `samples` each, in order, a line between them. A single one is
    shown as it comes, of several each as soon as it and those before it have ended.

    decode: token ids -> text. shown: False on all hosts but one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompts: int, samples: int, shown: bool):
        self._decode, self._samples, self._shown = decode, samples, shown
        self._ids: list[list[int]] = [[] for _ in range(prompts * samples)]
        self._ended = [False] * len(self._ids)
        self._next = 0  # the first that is not printed whole
        self._out = 0  # its characters that are

    def __call__(self, prompt: int, sample: int, ids: Sequence[int], ended: bool) -> None:
        """The next tokens of a completion, as a sampler's `on_tokens` has them."""
        at = prompt * self._samples + sample
        self._ids[at] += ids
        self._ended[at] = ended
        if len(self._ids) == 1 and not ended:
            self._show_part()
        while self._next < len(self._ids) and self._ended[self._next]:
            self._show_whole()

    def end(self) -> None:
        """Everything was drawn."""
        self._print("\n")

    def _show_part(self) -> None:
        """What is there, unless it ends within a character: a decoder has U+FFFD for its first bytes."""
        text = self._decode(self._ids[0])
        if not text.endswith("\ufffd"):
            self._print(text[self._out :])
            self._out = len(text)

    def _show_whole(self) -> None:
        text = self._decode(self._ids[self._next])[self._out :]
        self._print(_BETWEEN + text if self._next else text)
        self._next, self._out = self._next + 1, 0

    def _print(self, text: str) -> None:
        if self._shown and text:
            print(text, end="", flush=True)
