"""Which samples become rows: none unverified, none twice, and every sample is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.data.sft.rejection import Standards, normalized, select


def sample(completion="a good answer", text="ask", finished=True, tokens=5, **rewards):
    return {
        "text": text,
        "completion": completion,
        "finished": finished,
        "tokens": tokens,
        "rewards": rewards or {"right": 1.0, "form": 1.0},
    }


BOTH = Standards({"right": 1.0, "form": 0.5})


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (sample(finished=False), "truncated"),
        (sample("  "), "empty"),
        (sample(right=0.5, form=1.0), "right below 1"),
        (sample(right=1.0, form=0.4), "form below 0.5"),
        (sample(right=1.0, form=None), "form does not apply"),
        (sample(right=1.0), "form does not apply"),
        (sample(tokens=9), "too long"),
    ],
)
def test_a_sample_below_the_standards_is_dropped_with_its_reason(one, reason):
    kept, dropped = select([one], Standards(BOTH.thresholds, keep_tokens=8))
    assert (kept, dropped) == ([], {reason: 1})


def test_an_answer_is_kept_once_for_each_prompt():
    answers = ["It is 7.", "It is 7.", "it  is: 7!", "It is 8.", "It is 7.5"]
    given = [sample(one) for one in answers] + [sample("It is 7.", text="another question")]
    kept, dropped = select(given, BOTH)
    assert [one["completion"] for one in kept] == ["It is 7.", "It is 8.", "It is 7.5", "It is 7."]
    assert dropped == {"duplicate": 1, "near duplicate": 1}
    assert len(select(given, Standards(BOTH.thresholds, normalized=False))[0]) == 5


def test_a_dropped_sample_does_not_count_as_seen():
    """A dropped sample neither makes a later one a duplicate nor counts towards the limit of its prompt."""
    given = [
        sample(finished=False),
        sample(),
        sample("another", tokens=99),
        sample("a third"),
        sample("a fourth"),
    ]
    kept, dropped = select(given, Standards(BOTH.thresholds, keep_per_prompt=2, keep_tokens=50))
    assert [one["completion"] for one in kept] == ["a good answer", "a third"]
    assert dropped == {"truncated": 1, "too long": 1, "enough of the prompt": 1}


def test_normalising_keeps_signs_and_numbers_apart():
    assert normalized("9 - 5 = 4") != normalized("9 + 5 = 4")
    assert normalized("1.5") != normalized("15") != normalized("1 5")
    assert normalized("Ends.  Here,\nso") == normalized("ends here so")


SAMPLES = st.builds(
    sample,
    completion=st.sampled_from(["a", "A!", "b", " ", "c c"]),
    text=st.sampled_from(["p", "q"]),
    finished=st.booleans(),
    tokens=st.integers(1, 9),
    right=st.sampled_from([None, 0.0, 1.0]),
    form=st.sampled_from([0.0, 1.0]),
)


@given(st.lists(SAMPLES, max_size=30), st.integers(0, 2), st.integers(0, 8), st.booleans())
def test_every_sample_is_counted_and_kept_ones_meet_the_standards(given, most, longest, fuzzy):
    kept, dropped = select(given, Standards(BOTH.thresholds, most, longest, fuzzy))
    assert len(kept) + sum(dropped.values()) == len(given)
    for one in kept:
        assert one["finished"]
        assert one["rewards"] == {"right": 1.0, "form": 1.0}
        assert not longest or one["tokens"] <= longest
    keys = [(one["text"], one["completion"]) for one in kept]
    assert len(set(keys)) == len(keys)
    assert not most or max(map([key[0] for key in keys].count, "pq")) <= most
