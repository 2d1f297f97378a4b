"""Rewards for how long and how repetitive a response is, by their names."""

import math

import pytest

from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool, load_reward


def kimi(lengths, texts, prompts=None, golds=None, spec="kimi_length"):
    prompts = prompts or ["q"] * len(texts)
    return load_reward(spec).function(
        prompts=prompts,
        completions=[f"\\boxed{{{text}}}" for text in texts],
        completion_ids=[[1] * n for n in lengths],
        answer=golds or ["4"] * len(texts),
    )


def test_among_right_answers_the_short_ones_win_and_wrong_ones_win_nothing():
    assert kimi([10, 20, 30, 10, 30], ["4", "4", "4", "5", "5"]) == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_equal_lengths_score_zero():
    assert kimi([7, 7, 7], ["4", "5", "4"]) == [0.0, 0.0, 0.0]
    assert kimi([7], ["4"]) == [0.0]


def test_a_row_with_an_unreadable_gold_has_no_score_but_its_length_counts():
    assert kimi([10, 20, 30], ["4", "4", "4"], golds=["4", "", "4"]) == [0.5, None, -0.5]


def test_groups_are_those_of_equal_prompts():
    chat = [{"role": "user", "content": "q"}]
    got = kimi([10, 20, 100, 300], ["4"] * 4, prompts=["a", "a", chat, chat])
    assert got == [0.5, -0.5, 0.5, -0.5]
    mixed = kimi([10, 100, 20, 300], ["4"] * 4, prompts=["a", chat, "a", chat])
    assert mixed == [0.5, 0.5, -0.5, -0.5]


def test_the_option_judge_chooses_the_reward_that_says_what_is_correct():
    assert kimi([10, 20], ["4", "5"], spec="kimi_length:judge=gsm8k") == [0.5, -0.5]
    got = load_reward("kimi_length:judge=knights_and_knaves").function(
        prompts=["q"] * 2,
        completions=["<answer>Zoey is a knight</answer>"] * 2,
        completion_ids=[[1], [1, 2]],
        answer=["(1) Zoey is a knight"] * 2,
    )
    assert got == [0.5, -0.5]


def test_a_pool_gives_kimi_length_whole_groups():
    texts = [r"\boxed{4}"] * 4
    ids = [[1] * n for n in (10, 30, 5, 6)]
    with RewardPool(["kimi_length"], workers=1) as pool:
        got = pool.score(["a", "a", "b", "b"], texts, {"answer": ["4"] * 4}, ids)
    assert got.values[:, 0].tolist() == [0.5, -0.5, 0.5, -0.5]
    assert got.retried == {"kimi_length": 0}


def cosine(length, text, options=""):
    reward = load_reward(f"cosine_scaled_reward:max_len=100{options}").function
    return reward(completions=[f"\\boxed{{{text}}}"], solution=["4"], completion_ids=[[1] * length])[0]


def test_the_cosine_is_flat_beyond_max_len_unless_faithful():
    right, wrong = ([cosine(n, text) for n in range(0, 301, 10)] for text in "45")
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert (right[0], right[-1], wrong[0], wrong[-1]) == (1.0, 0.5, -1.0, -0.5)
    for n in (0, 30, 100, 150, 200):
        bare = 0.75 + 0.25 * math.cos(math.pi * n / 100)
        assert cosine(n, "4", ",faithful=true") == pytest.approx(bare)
    assert cosine(200, "4", ",faithful=true") == 1.0  # climbed back


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ("the cat sat", 3, 0.0),
        ("The cat the CAT the cat", 2, -3 / 5),
        ("a a a a a", 1, -4 / 5),
        ("好好好好", 1, -3 / 4),
        ("我们来看看", 2, 0.0),
        ("我们看我们看", 3, -1 / 4),
        ("we 看 we 看", 2, -1 / 3),
        ("x = 1 + 1 + 1 + 1 + 1", 1, 0.0),
        ("", 3, 0.0),
        ("one two", 3, 0.0),
    ],
)
def test_repetition_penalises_the_share_of_repeated_ngrams(text, ngram, expected):
    reward = load_reward(f"repetition:ngram_size={ngram}").function
    assert reward(completions=[text]) == [pytest.approx(expected)]
    half = load_reward(f"repetition:ngram_size={ngram},max_penalty=-0.5").function
    assert half(completions=[text]) == [pytest.approx(expected / 2)]


@pytest.mark.parametrize(
    ("text", "wanted", "faithful"),
    [
        ("1 2 3 1 2 3 1 2 3", 0.0, -4 / 7),
        ("$x$ $x$ $x$ $x$", 0.0, -1 / 2),
        ("ab cd ef ab cd ef ab", -2 / 5, -2 / 5),
    ],
)
def test_repeated_formulas_are_penalised_only_if_faithful(text, wanted, faithful):
    found = [
        load_reward(f"repetition{options}").function(completions=[text])[0]
        for options in ("", ":faithful=true")
    ]
    assert found == [pytest.approx(wanted), pytest.approx(faithful)]


def test_trls_rewards_on_tokens_load_by_name():
    ids = [[1, 2, 1, 2, 1], [1] * 9, []]
    assert load_reward("repetition_penalty_reward:ngram_size=2").function(completion_ids=ids) == [
        -0.5, pytest.approx(-7 / 8), 0.0,
    ]  # fmt: skip
    limits = "soft_overlong_punishment_reward:max_completion_len=10,soft_punish_cache=4"
    assert load_reward(limits).function(completion_ids=[[1] * n for n in (6, 8, 10, 11)]) == [0, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("repetition:ngram_size=0", "ngram_size = 0"),
        ("repetition_penalty_reward:max_penalty=1", "would reward repetition"),
        ("cosine_scaled_reward:max_len=0", "max_len = 0"),
        ("soft_overlong_punishment_reward:soft_punish_cache=-1", "soft_punish_cache = -1"),
        ("soft_format:think=", "a tag without a name"),
        ("kimi_length:judge=countdown", "judge=countdown must be one of boxed_math"),
    ],
)
def test_an_invalid_option_is_refused_before_any_row(spec, message):
    with pytest.raises(UserError, match=message):
        load_reward(spec)


@pytest.mark.parametrize(
    ("text", "corrected", "faithful"),
    [
        ("Step 1: a\nStep 2: b\nStep 3: c\nStep 4: d", 1, 1),
        ("1. a\n2. b\n3. c", 1, 1 / 3),  # published: only the number at the very beginning
        ("First, a. Then b.", 1 / 3, 1 / 3),
        ("First, a. Next, b. Finally, c.", 1, 1),
        ("so\n- a\n* b", 2 / 3, 2 / 3),
        ("so\n-7\n**bold**", 0, 2 / 3),  # a negative number and bold print are no steps
        ("首先,设。其次,算。最后,答。", 1, 0),
        ("第一步:设\n第2步:算", 2 / 3, 0),
        ("3.5 apples", 0, 1 / 3),
        ("nothing of that kind", 0, 0),
        ("", 0, 0),
    ],
)
def test_each_of_three_reasoning_steps_scores_a_third(text, corrected, faithful):
    assert load_reward("reasoning_steps").function(completions=[text]) == [pytest.approx(corrected)]
    published = load_reward("reasoning_steps:faithful=true").function(completions=[text])
    assert published == [pytest.approx(faithful)]
