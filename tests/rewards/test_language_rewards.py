"""Language: what is counted and what is not, by the definition in `language.py`; linear in the text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rewards import load_reward
from grpo_jax.rewards.functions.scripts import script_of, words

ENGLISH = "How many apples are left in the box?"
CHINESE = "盒子里还剩多少个苹果？"


def share(prompt, text, spec="language_consistency", **columns):
    return load_reward(spec).function(prompts=[prompt], completions=[text], **columns)[0]


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (ENGLISH, "there are four apples left", 1.0),
        (ENGLISH, "there are 四个 apples", 3 / 5),  # each character is a word
        (ENGLISH, "ответ четыре", 0.0),
        (CHINESE, "还剩四个", 1.0),
        (CHINESE, "还剩 four apples", 2 / 4),
        (CHINESE, "りんごは四つです", 1.0),  # Japanese is of the same script
        ("Сколько яблок осталось?", "осталось four", 0.5),
        ("사과가 몇 개 남았나요?", "네 개 left", 2 / 3),
        ("كم تفاحة بقيت؟", "بقيت أربع", 1.0),
        ("कितने सेब बचे हैं", "चार सेब बचे हैं", 1.0),
        # What does not count:
        (ENGLISH, "four apples ```\n四个苹果\n``` left", 1.0),
        (ENGLISH, "four apples `四个` left", 1.0),
        (ENGLISH, "four $四个$ apples \\text{四个} left \\[ 四 \\] \\( 四 \\) $$四\n四$$", 1.0),
        (CHINESE, "还剩 Alice 和 NASA 的 iPhone", 1.0),
        (CHINESE, "设 x 和 π 为 https://example.org/apples <think> 123", 1.0),
        (CHINESE + " python", "用 python 算", 1.0),  # the prompt says it too
        (ENGLISH, "４ ａｐｐｌｅｓ", 1.0),  # wide letters
        # Nothing to count:
        (ENGLISH, "", None),
        (ENGLISH, "42 = x", None),
        ("1 + 1 = ?", "two", None),
    ],
)
def test_the_score_is_the_share_of_words_in_the_prompts_language(prompt, text, expected):
    got = share(prompt, text)
    mixing = share(prompt, text, "language_mixing")
    assert got == (expected if expected is None else pytest.approx(expected))
    assert mixing == (None if expected is None else pytest.approx(expected - 1))


def test_the_users_last_message_sets_the_language():
    chat = [
        {"role": "system", "content": "Think first, then answer within the tags."},
        {"role": "user", "content": CHINESE},
        {"role": "assistant", "content": "<think>"},
    ]
    assert share(chat, [{"role": "assistant", "content": "还剩四个"}]) == 1.0
    assert share(chat[:1], "four") is None


def test_names_of_the_row_do_not_count_when_they_are_foreign():
    assert share(ENGLISH, "apples of 小明", names=[["小明"]]) == 1.0
    assert share(ENGLISH, "apples of 小明", names=["小明, 小红"]) == 1.0
    assert share(ENGLISH, "apples of 小明", names=[None]) == 0.5
    assert share(CHINESE, "小明 said", names=[["小明"]]) == pytest.approx(2 / 3)


def test_the_option_language_sets_the_script():
    assert share(ENGLISH, "四个", "language_consistency:language=cjk") == 1.0
    assert share("1 + 1", "two", "language_mixing:language=latin") == 0.0


def test_words_are_split_by_script_and_cjk_by_character():
    assert list(words("Don't use x_1, 苹果2个 and naïve’")) == [
        ("Don't", "latin"), ("use", "latin"), ("x", "latin"), ("苹", "cjk"), ("果", "cjk"), ("个", "cjk"),
        ("and", "latin"), ("naïve", "latin"),
    ]  # fmt: skip
    assert list(words("सेब ne\u0301e")) == [("सब", "devanagari"), ("née", "latin")]
    assert [script_of(c) for c in "aяあア漢한ก"] == [
        "latin",
        "cyrillic",
        "cjk",
        "cjk",
        "cjk",
        "hangul",
        "thai",
    ]


@given(st.text(max_size=200), st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_share_between_0_and_1_or_none(prompt, text):
    got = share(prompt, text)
    assert got is None or 0 <= got <= 1


@pytest.mark.parametrize(
    "piece", ["`", "```", "$", "$$", r"\[", r"\(", r"\a{", "<", "四", "a'", "https://", "x ", "é"]
)
def test_hostile_repetition_costs_linear_time(piece):
    start = time.perf_counter()
    share("words", piece * (400_000 // len(piece)))
    assert time.perf_counter() - start < 5.0
