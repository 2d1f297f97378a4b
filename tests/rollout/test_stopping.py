"""Stop strings end a row at the token that completes one, wherever segments are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rollout import output_buffer as module
from grpo_jax.rollout.output_buffer import OutputBuffer
from grpo_jax.rollout.row_table import RowTable
from grpo_jax.rollout.state import SampledTokens
from grpo_jax.rollout.stopping import Stop

PIECES = [
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"\n",
    b"\n\n",
    b"aab",
    "ä".encode(),
    "😀".encode()[:2],
    "😀".encode()[2:],
]
PAD, WIDTH = 99, 40


def decode(ids):
    """As byte-level tokenizers do: bytes that are no character yet become U+FFFD."""
    return b"".join(PIECES[i] for i in ids).decode(errors="replace")


def first_complete(ids, strings):
    """By trying each prefix."""
    found = (n for n in range(1, len(ids) + 1) if any(s in decode(ids[:n]) for s in strings))
    return next(found, None)


tokens = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=WIDTH)
strings = st.lists(
    st.sampled_from(["bb", "aab", "\n\n", "😀", "ä", "b\na", "abab", "😀😀", "aäa"]), min_size=1, max_size=2
)


@pytest.fixture(autouse=True, scope="module")
def _on_the_host():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.hosts, "get", np.asarray)
        yield


@given(tokens, strings, st.data())
@settings(max_examples=300, deadline=None)
def test_a_stop_string_across_segments_is_found(ids, strings, data):
    """Looked for in pieces of any length, it ends the row where a search through each prefix says."""
    stop, seen, end = Stop(tuple(strings), decode), 0, None
    while end is None and seen < len(ids):
        count = data.draw(st.integers(1, len(ids) - seen))
        end = stop.end(ids[: seen + count], seen)
        seen += count
    assert end == first_complete(ids, strings)


def read(ids, segment, stop=None, on_tokens=None):
    """The completions `ids` of one prompt, read in segments after their first tokens."""
    G = len(ids)
    rows = OutputBuffer(np.full((1, G), WIDTH, np.int32), WIDTH, PAD, stop, on_tokens)
    table = RowTable(np.zeros((1, 1), int), np.arange(G)[None, None])
    ends = np.array([len(row) for row in ids])
    for start in [0, *range(1, WIDTH, segment)]:
        n = 1 if start == 0 else segment
        padded = np.array([[*row, *[PAD] * (WIDTH + segment)][start : start + n] for row in ids])
        lengths = np.minimum(ends, start + n)
        finished = (lengths == ends) & (ends < WIDTH)
        sampled = SampledTokens(padded[None], np.full((1, G, n), -1.0), lengths[None], finished[None])
        rows.add(sampled, table, np.full((1, 1, G), start, np.int32))
    return rows


@given(st.lists(tokens, min_size=1, max_size=3), strings, st.integers(1, WIDTH))
@settings(max_examples=100, deadline=None)
def test_a_stopped_completion_does_not_depend_on_the_segments(ids, strings, segment):
    reported = {}

    def on_tokens(p, g, new, ended):
        assert not reported.get(g, ([], False))[1], "after its end"
        reported[g] = [*reported.get(g, ([], False))[0], *new], ended

    rows = read(ids, segment, Stop(tuple(strings), decode), on_tokens)
    for g, row in enumerate(ids):
        end = first_complete(row, strings)
        kept = row[:end]
        assert rows.lengths[0, g] == len(kept)
        assert rows.tokens[0, g].tolist() == [*kept, *[PAD] * (WIDTH - len(kept))]
        assert rows.logprobs[0, g].tolist() == [-1.0] * len(kept) + [0.0] * (WIDTH - len(kept))
        assert rows.finished[0, g] == (end is not None or len(row) < WIDTH)
        assert rows.ended[0, g]
        assert reported[g] == (kept, True)


def test_only_the_end_of_a_long_completion_is_decoded():
    longest = []
    counted = lambda ids: longest.append(len(ids)) or decode(ids)
    Stop(("bb",), counted).end([0] * 10_000, 9_990)
    assert max(longest) < 20
