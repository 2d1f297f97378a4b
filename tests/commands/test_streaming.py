"""Text on the terminal while it is sampled: the bytes are those of the whole text, and no character is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.commands.generate_stream import StreamPrinter


def decode(ids):
    return bytes(ids).decode(errors="replace")


def printed(texts, samples, order, monkeypatch):
    """What is printed, piece by piece, when bytes come in the given order of (completion, bytes)."""
    pieces, left = [], [list(text) for text in texts]
    monkeypatch.setattr("builtins.print", lambda text, end, flush: pieces.append(text))
    show = StreamPrinter(decode, prompts=len(texts) // samples, num_generations=samples, enabled=True)
    for index, count in order:
        new, left[index] = left[index][:count], left[index][count:]
        show(index // samples, index % samples, new, not left[index])
    show.end()
    return pieces


@given(st.binary(min_size=1, max_size=30) | st.text(min_size=1, max_size=9).map(str.encode), st.data())
@settings(max_examples=200, deadline=None)
def test_the_printed_pieces_make_up_the_whole_text(text, data):
    """Any bytes, also those that never become characters."""
    cuts = []
    while sum(cuts) < len(text):
        cuts.append(data.draw(st.integers(1, len(text) - sum(cuts))))
    with pytest.MonkeyPatch.context() as patch:
        pieces = printed([text], 1, [(0, n) for n in cuts], patch)
    assert "".join(pieces) == decode(text) + "\n"


def test_a_character_is_printed_whole(monkeypatch):
    text = "aä😀b".encode()
    pieces = printed([text], 1, [(0, 1)] * len(text), monkeypatch)
    assert pieces == ["a", "ä", "😀", "b", "\n"]


def test_completions_are_printed_one_after_another_in_order(monkeypatch):
    texts = [b"one", b"two", b"three", b"four"]
    order = [(2, 5), (0, 1), (1, 3), (3, 2), (0, 2), (3, 2)]
    pieces = printed(texts, 2, order, monkeypatch)
    assert pieces == ["one", "\n---\ntwo", "\n---\nthree", "\n---\nfour", "\n"]


def test_a_disabled_printer_prints_nothing(capsys):
    show = StreamPrinter(decode, prompts=1, num_generations=1, enabled=False)
    show(0, 0, b"a", True)
    show.end()
    assert capsys.readouterr().out == ""
