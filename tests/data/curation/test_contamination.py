"""Contamination: leaks are found, and phrases that many problems share do not count as leaks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curation.contamination import SHORTEST, HeldOutProblem, Overlap, decontaminate
from grpo_jax.data.curation.words import ngrams, words
from grpo_jax.data.sources import load_rows

PHRASE = "The answer can be written as m/n where m and n are relatively prime positive integers."
TEST = "A farmer has seventeen sheep and sells all but nine of them at the spring market in Lund."


def held_out(*texts):
    return [HeldOutProblem("test", number, text) for number, text in enumerate(texts, start=1)]


def overlaps(texts, test, n=8, boilerplate=10):
    """(what overlaps, rows of boilerplate alone, boilerplate)."""
    figures = decontaminate([{} for _ in texts], texts, test, n, boilerplate).figures
    names = Overlap.__dataclass_fields__
    found = [Overlap(**{name: item[name] for name in names}) for item in figures["flagged"]]
    found.sort(key=lambda item: item.row)
    return found, figures["boilerplate_rows"], figures["boilerplate"]


def test_a_leak_is_found_whatever_its_case_punctuation_and_line_breaks():
    leak = "a FARMER has seventeen sheep,\nand sells (all but) nine of them. What is left?"
    (found,), _, _ = overlaps(["Other words entirely, and many of them, but no leak.", leak], held_out(TEST))
    assert (found.row, found.against_row, found.same) == (2, 1, False)
    assert found.shared == len(words("A farmer has seventeen sheep and sells all but nine of them")) - 7
    assert found.of == len(words(TEST)) - 7
    assert found.example == "a farmer has seventeen sheep and sells all"


def test_an_overlap_of_fewer_than_n_words_does_not_count():
    assert overlaps(["Once a farmer has seventeen sheep and sells none."], held_out(TEST))[0] == []
    assert len(overlaps(["a farmer has seventeen sheep and sells none"], held_out(TEST), n=7)[0]) == 1


def test_an_overlap_names_the_problem_that_shares_most():
    other = "Also a farmer has seventeen sheep and sells all the goats."
    (found,), _, _ = overlaps([TEST + " Really?"], held_out(other, TEST))
    assert found.against_row == 2


def test_a_leak_shorter_than_an_ngram_is_found_as_the_same_text():
    (found,), _, _ = overlaps(["What is 3 + 4?"], held_out("what is 3+4"))
    assert (found.same, found.share, found.of) == (True, 1.0, 0)
    assert overlaps(["", "?"], held_out("", "!"))[0] == []


def test_a_short_problem_is_found_inside_a_row_from_five_words_on():
    """From five words on, where eight are asked for."""
    data = ["Ann asks: Compute the sine of 60 degrees.", "Ann asks: what is 3 + 4? And 5?", "the sine of 60"]
    test = held_out("What is 3 + 4?", "Compute the sine of 60 degrees", TEST, "!")
    (found,), _, _ = overlaps(data, test)
    assert (found.row, found.against_row, found.shared, found.of) == (1, 2, 1, 1)
    assert (found.same, found.share, found.example) == (False, 1.0, "compute the sine of 60 degrees")
    figures = decontaminate([{}] * 3, data, test).figures
    assert figures["held_out_short"] == {"as a whole": 1, "only as the same text": 1}
    assert (figures["held_out"], len(figures["held_out_unreadable"])) == (3, 1)
    common = [f"Compute the sine of 60 degrees, and of thing{i}." for i in range(9)]
    assert overlaps(common, test)[:2] == ([], list(range(1, 10))), "boilerplate, as any n-gram"


def test_boilerplate_does_not_count_as_a_leak():
    data = [f"Problem about thing{i}. {PHRASE}" for i in range(12)]
    found, empty, common = overlaps(data, held_out(f"Another one. {PHRASE}"))
    assert (found, empty) == ([], list(range(1, 13)))
    assert set(common.values()) == {13}
    assert overlaps(data[:9], held_out(f"Another one. {PHRASE}"))[1] == list(range(1, 10))
    assert len(overlaps(data[:8], held_out(f"Another one. {PHRASE}"))[0]) == 8, "nine texts are not ten"


def test_copies_of_a_leak_do_not_make_it_boilerplate():
    copies = [TEST + " What is left?"] * 30
    assert len(overlaps(copies, held_out(TEST))[0]) == 30


def test_a_row_equal_to_a_problem_of_boilerplate_is_found():
    data = [f"Problem about thing{i}. {PHRASE}" for i in range(12)] + [PHRASE]
    (found,), _, _ = overlaps(data, held_out(PHRASE))
    assert (found.row, found.same) == (13, True)


def test_leaks_are_dropped_only_when_asked():
    rows = [
        {"q": "fine"},
        {"q": TEST},
        {"q": TEST + " And more?"},
        {"q": "So a farmer has seventeen sheep and sells all."},
    ]
    texts = [row["q"] for row in rows]
    report = decontaminate(rows, texts, held_out(TEST))
    assert [row["overlap"] for row in report.kept] == [0.0, 1.0, 1.0, 1 / 11]
    figures = {name: report.figures[name] for name in ("overlapping", "leaks", "same_text")}
    assert figures == {"overlapping": 3, "leaks": 2, "same_text": 1}
    dropped = decontaminate(rows, texts, held_out(TEST), drop=True)
    assert [row["overlap"] for row in dropped.kept] == [0.0, 1 / 11]
    assert [(d.row, d.reason) for d in dropped.dropped] == [(2, "same_text"), (3, "overlap")]
    assert dropped.dropped[1].found.startswith("11 of 11 n-grams of test, row 1: a farmer has")
    assert dropped.dropped[1].columns is rows[2]
    assert len(decontaminate(rows, texts, held_out(TEST), share=0, drop=True).kept) == 1


def test_of_94_gsm8k_rows_that_share_a_phrase_four_are_leaks(shared_data):
    """One n-gram finds phrases of everyday language; a fifth of the problem finds rewritten problems."""
    train, test = (load_rows(shared_data / "gsm8k", split) for split in ("train", "test"))
    texts = [row["question"] for row in train]
    figures = decontaminate(train, texts, held_out(*(row["question"] for row in test))).figures
    assert (figures["overlapping"], figures["leaks"], figures["same_text"]) == (94, 4, 0)


def test_every_chinese_character_is_a_word():
    assert words("已知x=3,求 Y。") == ["已", "知", "x", "3", "求", "y"]


def test_ligatures_and_case_make_no_difference_to_words():
    assert words("ﬁnd Größe") == words("FIND GRÖSSE") == ["find", "grösse"]


def test_a_text_of_three_words_has_two_pairs():
    assert list(ngrams(words("one two three"), 2)) == ["one two", "two three"]


short = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9).map(" ".join)


@settings(deadline=None)
@given(st.lists(short, max_size=6), st.lists(short, max_size=4), st.integers(1, 8), st.booleans())
def test_the_index_finds_exactly_what_comparing_all_pairs_finds(data, test, n, drop):
    found = overlaps(data, held_out(*test), n, boilerplate=10**6)[0]
    size = lambda other: min(n, max(len(words(other)), SHORTEST))
    grams = lambda text, other: set(ngrams(words(text), size(other)))
    both = lambda text, other: grams(text, other) & grams(other, other)
    expected = [
        number
        for number, text in enumerate(data, start=1)
        if any(both(text, other) or (text and words(text) == words(other)) for other in test)
    ]
    assert [item.row for item in found] == expected
    for item in found:
        own = data[item.row - 1]
        shares = [len(both(own, other)) / len(grams(other, other)) for other in test if grams(other, other)]
        assert item.same or item.share == max(shares)
    outcome = decontaminate([{"t": t} for t in data], data, held_out(*test), n, 10**6, 0.0, drop)
    assert len(outcome.dropped) == (len(expected) if drop else 0)
