"""Faults found in other projects' graders: each is a case that ours get right."""

import functools
import json
import threading
import time

import numpy as np
import pytest
from math_verify import parse, verify

from grpo_jax.rewards import RewardPool, load_reward


def score(spec, text, **columns):
    rows = {name: [value] for name, value in columns.items()}
    return load_reward(spec).function(prompts=["q"], completions=[text], **rows)[0]


# Last-number rules.

NUMBER_RULES = ["gsm8k", "simple_grpo_correct", "reinforce_lite", "boxed_math:think=false"]


def written(rule, answer):
    """The answer in the form that the rule requires; `gsm8k` and `simple_grpo_correct` also take a bare text."""
    shells = {"reinforce_lite": "<answer>{}</answer>", "boxed_math:think=false": r"\boxed{{{}}}"}
    return "There were 2 of 12, so " + shells.get(rule, "{}").format(answer)


@pytest.mark.parametrize("rule", NUMBER_RULES)
@pytest.mark.parametrize(
    ("answer", "gold", "misread"),
    [
        ("-7", "-7", ["7"]),
        ("1,080", "1080", ["80", "080", "1"]),
        ("3 1/2", "7/2", ["312", "1/2", "3/2", "3", "2"]),
    ],
)
def test_signs_commas_and_mixed_numbers_are_read_whole(rule, answer, gold, misread):
    right = functools.partial(score, rule, written(rule, answer))
    assert right(answer=gold) == 1
    assert all(right(answer=wrong) <= 0 for wrong in misread)


@pytest.mark.parametrize("rule", ["gsm8k", "simple_grpo_correct", "reinforce_lite"])
def test_a_number_after_the_answer_is_not_taken_for_it(rule):
    text = "<answer>18 dollars for 2 dozen</answer>"
    assert score(rule, text, answer="18") == 1
    assert score(rule, text, answer="2") <= 0


def test_faithful_simple_grpo_reads_the_last_digits_as_published():
    faithful = functools.partial(score, "simple_grpo_correct:faithful=true")
    assert faithful("so -7", answer="7") == 1
    assert faithful("so 1,080", answer="80") == 1
    assert faithful("18 dollars for 2 dozen", answer="2") == 1
    assert faithful("1/0", answer="1") == faithful("none", answer="1") == -1


def test_only_the_number_after_the_last_answer_tag_counts():
    assert score("reinforce_lite", "<answer>5</answer> no: <answer>18", answer="18") == 1
    assert score("reinforce_lite", "<answer>18</answer> no: <answer>5</answer>", answer="18") == -1
    assert score("reinforce_lite", "it is 18", answer="18") == -1


@pytest.mark.parametrize("gold", ["5", "1,080", "-7", "-1,080", "70000"])
def test_a_gold_with_a_comma_or_a_sign_is_read(gold):
    for rule in NUMBER_RULES:
        assert score(rule, written(rule, gold), answer=f"so\n#### {gold}") == 1


def test_every_gold_of_gsm8k_is_correct_against_itself(shared_data):
    """All 8,792 are right by our rules; by the published last digits those with a comma or a sign are wrong."""
    golds = [
        json.loads(line)["answer"]
        for name in ("train", "test")
        for line in (shared_data / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    numbers = [gold.rpartition("####")[2].strip() for gold in golds]
    right = {
        spec: load_reward(spec).function(prompts=golds, completions=texts, answer=golds).count(1.0)
        for spec, texts in {
            "gsm8k": golds,
            "gsm8k_strict": golds,
            "simple_grpo_correct": golds,
            "simple_grpo_correct:faithful=true": golds,
            "reinforce_lite": [f"<answer>{number}</answer> of 2" for number in numbers],
        }.items()
    }
    assert right.pop("simple_grpo_correct:faithful=true") == 8792 - 98
    assert set(right.values()) == {8792}


# Countdown by `eval`.

COUNTDOWN = ["countdown", "mini_r1_equation", "mini_r1_equation:faithful=true"]
TINYZERO = ["tinyzero", "tinyzero:faithful=true"]
EVAL_CASES = [
    ("3**4", [3, 4], 81),
    ("3 ** 4", [3, 4], 81),
    ("7//2", [7, 2], 3),
    ("1.5*2", [1, 5, 2], 3),
    ("--3+4", [3, 4], 7),
    ("-+3+4", [3, 4], 1),
    ("(3)(4)", [3, 4], 12),
    ("3(4)", [3, 4], 12),
    ("1_0+5", [10, 5], 15),
    ("0x10", [0, 10], 16),
    ("3 if 4 else 5", [3, 4, 5], 3),
    ("1/0", [1, 0], 0),
    ("__import__('os').system('touch harm')", [], 0),
    ("", [], 0),
]


@pytest.mark.parametrize(("expression", "numbers", "target"), EVAL_CASES)
def test_expressions_that_only_eval_accepts_are_wrong_and_never_executed(
    expression, numbers, target, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = f"<answer>{expression}</answer>"
    assert [score(rule, text, numbers=numbers, target=target) for rule in COUNTDOWN] == [0.0] * 3
    assert all(score(rule, text, numbers=numbers, target=target) <= 0.1 for rule in TINYZERO)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("expression", ["97**98**4", "9**9**9**9", "((9**9)**9)**9", "9*" * 50_000 + "9"])
def test_a_power_tower_is_wrong_within_a_second(expression):
    start = time.perf_counter()
    for rule in COUNTDOWN + TINYZERO:
        assert score(rule, f"<answer>{expression}</answer>", numbers=[97, 98, 4], target=1) <= 0.1
    assert time.perf_counter() - start < 1.0


# Formats by regular expression.

FORMATS = {
    "think_answer_format": ("<think>T</think>\n<answer>A</answer>", 1.0, 0.0),
    "mini_r1_format": ("T</think>\n<answer>A</answer>", 1.0, 0.0),
    "simple_grpo_format": ("<think>T</think>\n<answer>A</answer>", 1.25, -1.0),
    "open_r1_format": ("<think>\nT\n</think>\n<answer>\nA\n</answer>", 1.0, 0.0),
}


@pytest.mark.parametrize(("name", "case"), FORMATS.items())
def test_empty_tags_are_refused(name, case):
    good, right, wrong = case
    assert score(name, good) == right
    for inside in (" ", ""):
        assert score(name, good.replace("T", inside)) == wrong
        assert score(name, good.replace("A", inside)) == wrong


@pytest.mark.parametrize(("name", "case"), FORMATS.items())
def test_a_second_answer_block_is_refused(name, case):
    good, _, wrong = case
    assert score(name, good + "\n<answer>c</answer>") == wrong
    assert score(name, good + "\n<answer>\nc\n</answer>") == wrong
    assert score(name, good + "</answer>") == wrong


@pytest.mark.parametrize(("name", "case"), FORMATS.items())
def test_an_end_marker_or_a_blank_line_is_accepted(name, case):
    good, right, _ = case
    for text in (good + "<|im_end|>", good + "\n<|im_end|>\n", good.replace("<answer>", "\n<answer>")):
        assert score(name, text) == right


# Length.


def test_the_cosine_is_flat_beyond_the_maximum_length():
    reward = load_reward("cosine_scaled_reward:max_len=10").function
    ids = [[0] * n for n in (10, 11, 15, 20, 40)]
    right = reward(completions=[r"\boxed{4}"] * 5, solution=["4"] * 5, completion_ids=ids)
    wrong = reward(completions=[r"\boxed{5}"] * 5, solution=["4"] * 5, completion_ids=ids)
    assert (right, wrong) == ([0.5] * 5, [-0.5] * 5)


# math-verify.


def test_gold_and_answer_are_verified_in_that_order():
    """An interval is met by a chain of inequalities, but not the other way round: the order shows."""
    chain, interval = parse("$2 < x < 5$"), parse("$(2,5)$")
    assert verify(chain, interval) != verify(interval, chain)
    for gold, answer, parsed in (
        ("2 < x < 5", "(2,5)", (chain, interval)),
        ("(2,5)", "2 < x < 5", (interval, chain)),
    ):
        expected = float(verify(*parsed))
        assert score("boxed_math:think=false", rf"\boxed{{{answer}}}", answer=gold) == expected
        assert score("accuracy_reward", rf"\boxed{{{answer}}}", solution=f"${gold}$") == expected


@pytest.mark.parametrize(
    "formula", [r"\frac43", r"11\sqrt2", r"\dfrac12", r"2\frac12", r"\sqrt3", r"\frac{\pi}2"]
)
def test_a_gold_equals_the_same_formula_in_a_box(formula):
    for gold in (formula, f"${formula}$", rf"so \boxed{{{formula}}}"):
        assert score("boxed_math", rf"hm </think> \boxed{{{formula}}}", answer=gold) == 1


def test_an_unreadable_gold_gives_no_score():
    assert score("boxed_math", r"</think> \boxed{4}", answer="") is None
    assert score("accuracy_reward", r"\boxed{4}", solution="nobody knows") is None
    kimi = load_reward("kimi_length").function
    row = {"prompts": ["q"] * 2, "completions": [r"\boxed{4}"] * 2, "completion_ids": [[1], [1, 2]]}
    assert kimi(**row, answer=["", ""]) == [None, None]


MATHEMATICAL = {
    "accuracy_reward": {"solution": ["4"]},
    "reasoning_accuracy_reward": {"solution": ["4"]},
    "boxed_math": {"answer": ["4"]},
    "cosine_scaled_reward": {"solution": ["4"], "completion_ids": [[1]]},
    "kimi_length": {"answer": ["4"], "completion_ids": [[1]]},
}


@pytest.mark.parametrize(("name", "columns"), MATHEMATICAL.items())
def test_mathematical_rewards_work_off_the_main_thread(name, columns):
    got = []
    row = {"prompts": ["q"], "completions": [r"</think> \boxed{4}"], **columns}
    thread = threading.Thread(target=lambda: got.append(load_reward(name).function(**row)))
    thread.start()
    thread.join()
    assert len(got) == 1
    assert got[0][0] == (0.0 if name == "kimi_length" else pytest.approx(1.0, abs=1e-5))


TIMEOUTS = """
class TimeoutException(BaseException):
    pass
def raises(completions, **columns):
    if "bad" in completions:
        raise TimeoutException("too slow")
    return [1.0] * len(completions)
"""


def test_a_row_that_raises_a_base_exception_loses_only_its_own_score(tmp_path):
    (tmp_path / "late.py").write_text(TIMEOUTS)
    with RewardPool([f"{tmp_path}/late.py:raises"], workers=1) as pool:
        got = pool.score(["a", "a", "b"], ["good", "bad", "good"])
        again = pool.score(["a"], ["good"])
    np.testing.assert_array_equal(got.values[:, 0], [1, np.nan, 1])
    assert got.errors == {"raises": 1}
    assert "TimeoutException: too slow" in pool.messages["raises"]["errors"]
    assert again.values.tolist() == [[1.0]]


@pytest.mark.parametrize("name", ["boxed_math", "accuracy_reward"])
def test_an_endless_formula_scores_zero_after_its_deadline(name):
    column = "answer" if name == "boxed_math" else "solution"
    warm, bomb = r"</think> \boxed{4}", r"</think> \boxed{(\alpha+\beta)^{9999}}"
    with RewardPool([name], workers=1, timeout=1.5) as pool:
        pool.score(["a"], [warm], {column: ["4"]})
        start = time.perf_counter()
        got = pool.score(["a", "b"], [bomb, warm], {column: ["4", "4"]})
        seconds = time.perf_counter() - start
    np.testing.assert_array_equal(got.values[:, 0], [0, 1])
    assert got.timeouts == {name: 1}
    assert seconds < 30  # two deadlines, and a worker that starts anew each time


def test_an_answer_has_the_same_score_in_the_pool_and_outside():
    """The same functions run in the pool and outside of it: in TRL's and in plain form, alone and in a batch."""
    texts = [r"</think> \boxed{4}", "</think> 4", r"</think> \boxed{\frac82}"]
    columns = {"answer": ["4"] * 3}
    alone = [score("boxed_math", text, answer="4") for text in texts]
    with RewardPool(["boxed_math"], workers=1) as pool:
        pooled = pool.score(["a", "a", "b"], texts, columns).values[:, 0].tolist()
        chats = [[{"role": "assistant", "content": text}] for text in texts]
        chatted = pool.score([[{"role": "user", "content": "a"}]] * 3, chats, columns).values[:, 0].tolist()
    assert alone == pooled == chatted == [1.0, 0.0, 1.0]
