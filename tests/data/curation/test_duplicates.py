"""Duplicates: found by an index exactly as by comparing every pair; different problems are never merged."""

from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curation.duplicates import dedup, jaccard, nearest_earlier, shingles

LONG = " ".join(f"word{i}" for i in range(60))


def kept(texts, answers=None, **options):
    rows = [{"id": number} for number in range(len(texts))]
    outcome = dedup(rows, texts, answers or [None] * len(texts), **options)
    return [row["id"] for row in outcome.kept], [(d.row, d.reason) for d in outcome.dropped]


def test_copies_are_dropped():
    assert kept(["What is 3 + 4?", "b", "what  is 3+4"]) == ([0, 1], [(3, "same_text")])


def test_near_copies_are_dropped():
    near = LONG + " extra"
    assert kept([LONG, near]) == ([0], [(2, "near_text")])
    assert kept([LONG, near], threshold=1.0)[0] == [0, 1]


def test_problems_with_another_number_are_different():
    """Five of their shingles of five words differ."""
    asks = (
        "Ann buys {} apples and gives a third of them to her brother Bob; how many has she got left at home?"
    )
    assert kept([asks.format(9), asks.format(12)])[0] == [0, 1]


def test_problems_with_other_answers_are_different():
    assert kept([LONG, LONG, LONG], ["1", "2", None])[0] == [0, 1]


def test_empty_texts_are_not_duplicates():
    assert kept(["", "", "?"])[0] == [0, 1, 2]


def test_jaccard_is_the_share_of_common_shingles():
    one, other = shingles("a b c d", 2), shingles("b c d e", 2)
    assert jaccard(one, other) == 2 / 4
    assert jaccard(frozenset(), frozenset()) == 0.0
    assert shingles("a b", 5) == {"a b"}


texts = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8).map(" ".join), max_size=10)


@settings(deadline=None)
@given(texts, st.sampled_from([0.1, 0.3, 0.5, 2 / 3, 0.75, 0.9, 1.0]), st.integers(1, 3))
def test_the_index_finds_exactly_what_comparing_all_pairs_finds(data, threshold, n):
    sets = [shingles(text, n) for text in data]
    expected, firsts = [], []
    for number, grams in enumerate(sets):
        match = next((i for i in firsts if grams and jaccard(grams, sets[i]) >= threshold), None)
        expected.append(match)
        firsts += [number] if match is None else []
    found = nearest_earlier(sets, [None] * len(sets), threshold)
    assert [pair and pair[0] for pair in found] == expected
