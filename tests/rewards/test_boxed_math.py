r"""Boxed mathematics: the last box after the reasoning, compared by its meaning with golds as people write them."""

import json
from collections import Counter

import pytest

from grpo_jax.rewards import RewardPool, load_reward
from grpo_jax.rewards.functions.boxed import boxed_math, gold_of


def score(text, gold, **options):
    return boxed_math([text], [gold], **options)[0]


def boxed(formula):
    return rf"<think>hm \boxed{{0}}</think> So it is \boxed{{{formula}}}."


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\frac43", r"\frac{4}{3}", 1),
        (r"\frac43", r"\frac43", 1),  # lost where answers are read strictly
        (r"11\sqrt2", r"11\sqrt2", 1),
        (r"11\sqrt2", r"11\sqrt{2}", 1),
        (r"11\sqrt2", "11", 0),  # right where a plain gold is read as its first number
        (r"$\frac{1}{2}$", "0.5", 1),
        (r"$$\frac{1}{2}$$", ".5", 1),
        (r"so \boxed{\frac{1}{2}}", r"\dfrac12", 1),
        (r"The answer is $\pi$", r"\pi", 1),
        ("1,080", "1080", 1),
        ("so\n#### 1,080", "1080", 1),
        (7, "7", 1),
        ("-7", "-7", 1),
        ("-7", "7", 0),
        ("3 1/2", "7/2", 1),
        ("-3 1/2", "-3.5", 1),
        ("3 1/2", "3/2", 0),
        (r"\$18.50", "18.5", 1),
        (r"50\%", "0.5", 1),
        (r"10^\circ", "10", 1),
        (r"6\text{ cm}", "6", 1),
        (r"x^2+2x+1", "(x+1)^2", 1),
        (r"(-\infty, 2]", r"(-\infty,2]", 1),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1),
        (r"\{1,2\}", r"\{2,1\}", 1),
        ("blue", r"\text{Blue}", 1),
        (r"\text{blue}", "lube", 0),  # no product of letters
        ("blue", "bleu", 0),
        ("no", "on", 0),
        ("No", r"\text{no}", 1),
        ("North-West", "north-west", 1),
        (r"\infty", "infinity", 1),
        ("(A)", "A", 1),
        ("4", "", 0),
        ("4", "four", 0),
    ],
)
def test_answers_are_equal_when_they_mean_the_same(gold, answer, expected):
    assert score(boxed(answer), gold) == expected


@pytest.mark.parametrize("gold", ["", " ", "$$", "]]", r"\frac{", r"\boxed{}", "####"])
def test_an_unreadable_gold_gives_no_score(gold):
    assert score(boxed("4"), gold) is None
    assert score("no thought, no box", gold) is None


@pytest.mark.parametrize(
    ("text", "with_thought", "without"),
    [
        (r"a </think> \boxed{5} no, \boxed{4}", 1, 1),
        (r"a </think> \boxed{4} no, \boxed{5}", 0, 0),
        (r"\boxed{4}", 0, 1),
        (r"a \boxed{4} </think> it is 4", 0, 0),  # a box in the thought does not count
        (r"a </think> \boxed{4} </think> \boxed{5}", 0, 0),
        (r"a </think> \boxed{\frac{8}{2}}", 1, 1),
        (r"a </think> \boxed{4", 0, 0),
        (r"a </think> 4", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_last_box_after_the_reasoning_is_the_answer(text, with_thought, without):
    assert score(text, "4") == with_thought
    assert load_reward("boxed_math:think=false").function(completions=[text], answer=["4"]) == [without]
    assert boxed_math([[{"role": "assistant", "content": text}]], ["4"]) == [with_thought]


def test_parsed_answers_and_golds_are_logged():
    table = {}
    log = lambda column, values: table.__setitem__(column, values)
    boxed_math([boxed("7"), "no end", "</think> no box"], ["4", "4", "4"], log_extra=log)
    assert table["solution"] == ["4"] * 3
    assert "7" in table["answer_parsed"][0]
    assert table["answer_parsed"][1:] == ["[incomplete reasoning]", "[no box]"]
    assert "4" in table["gold_parsed"][0]


def test_gold_of_strips_dollars_boxes_and_the_worked_solution():
    written = ["4", "$4$", "$$4$$", r"x \boxed{4}", "72 - 68 = 4\n#### 4", 4]
    assert {gold_of(gold) for gold in written} == {"4"}
    assert gold_of("$1$ and $2$") == "$1$ and $2$"


def test_every_gsm8k_answer_in_a_box_is_right(shared_data):
    rows = [
        json.loads(line)["answer"].rpartition("####")[2].strip()
        for name in ("train", "test")
        for line in (shared_data / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    counts = Counter(rows)
    different = list(counts)
    scores = boxed_math([boxed(number) for number in different], [f"#### {number}" for number in different])
    assert sum(counts[number] for number, right in zip(different, scores) if right == 1.0) == 8792
    following = different[1:] + different[:1]
    wrong = boxed_math([boxed(number) for number in following[:200]], different[:200])
    assert sum(wrong) == 0


def test_an_endless_formula_scores_zero_and_other_rows_are_scored():
    with RewardPool(["boxed_math"], workers=1, timeout=1.5) as pool:
        pool.score(["a"], [boxed("4")], {"answer": ["4"]})
        got = pool.score(["a", "a"], [boxed("4"), boxed(r"(\alpha+\beta)^{9999}")], {"answer": ["4", "4"]})
    assert got.values[:, 0].tolist() == [1, 0], "no better than a wrong answer"
    assert got.timeouts == {"boxed_math": 1}
