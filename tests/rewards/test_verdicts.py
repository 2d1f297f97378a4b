"""A completion that breaks its grader never scores better than a wrong one."""

import math
import time

import numpy as np
import pytest

from grpo_jax.rewards import RewardPool, load_reward
from grpo_jax.rewards.functions import boxed, formulas
from grpo_jax.rewards.functions.accuracy import accuracy_reward
from grpo_jax.rewards.functions.boxed import boxed_math
from grpo_jax.rewards.functions.cosine import get_cosine_scaled_reward
from grpo_jax.rewards.functions.endless import is_endless, without_open_formulas
from grpo_jax.rewards.functions.verdicts import worst, worst_of


@worst(-2.0)
def with_worst_score(completions, **columns):
    time.sleep(30 * ("bomb" in completions))
    return [float("right" in text) for text in completions]


def without_worst_score(completions, **columns):
    time.sleep(30 * ("bomb" in completions))
    return [1.0] * len(completions)


def test_a_timeout_gives_the_declared_worst_score_or_nan():
    with RewardPool([with_worst_score, without_worst_score], timeout=0.7, workers=2) as pool:
        scores = pool.score(["p"] * 3, ["right", "bomb", "wrong"])
    np.testing.assert_array_equal(scores.values, [[1.0, 1.0], [-2.0, math.nan], [0.0, 1.0]])
    assert scores.timeouts == {"with_worst_score": 1, "without_worst_score": 1}


@pytest.mark.parametrize(
    ("spec", "score"),
    [
        ("boxed_math", 0.0),
        ("boxed_math:think=false", 0.0),
        ("accuracy_reward", 0.0),
        ("kimi_length", -0.5),
        ("cosine_scaled_reward", -1.0),
        ("cosine_scaled_reward:min_value_wrong=-3", -3.0),
        (get_cosine_scaled_reward(10, min_value_wrong=-4.0), -4.0),
        ("repetition", math.nan),
    ],
)
def test_worst_of_is_the_lowest_score_that_a_reward_gives(spec, score):
    assert worst_of(load_reward(spec).function) == pytest.approx(score, nan_ok=True)


ENDLESS = [
    *(
        "99999999!",
        "((9!)!)!",
        "9!!!",
        "9^{9^{9}}",
        "7^{99999999}",
        r"\binom{99999999}{49999999}",
        "1" + "/2" * 300,
    ),
    *("(" * 900 + "1" + ")" * 900, r"\sin(" * 40 + "1" + ")" * 40, "{" * 99 + "1" + "}" * 99, "(x+y)^{9999}"),
    *(r"\int_0^1 x^x dx", r"\prod_{i=1}^{9999999} i", r"\lfloor" * 40 + "1", "|" * 50 + "x" + "|" * 50),
]
PLAIN = [
    *(
        "5!",
        "20!",
        "2^{2^{3}}",
        "2^{2019}",
        "10^{100}",
        r"\binom{100}{50}",
        "1/2",
        "1/2, 1/3, 1/4, 1/5, 1/6, 1/7, 1/8",
    ),
    *(
        r"\frac{1}{1+\frac{1}{1+\frac{1}{2}}}",
        r"\sqrt{1+\sqrt{2+\sqrt{3}}}",
        "(x+1)^{12}",
        "x^4+3x^3y^2-|x-|y||",
    ),
    *(
        r"(\sqrt{2})^{2019}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\{1,2,3\}",
        "1) 2) 3) so on",
        r"\intercal",
    ),
]


@pytest.mark.parametrize("formula", ENDLESS)
def test_an_endless_formula_is_recognised_and_scores_zero(formula):
    assert is_endless(formula)
    assert boxed_math([rf"\boxed{{{formula}}}"], ["1"], think=False) == [0.0]
    assert accuracy_reward([rf"So \boxed{{{formula}}}"], ["1"]) == [0.0]


@pytest.mark.parametrize("formula", PLAIN)
def test_a_plain_formula_is_not_endless(formula):
    assert not is_endless(formula)


@pytest.mark.parametrize(
    "piece", [r"\(", r"\[", r"\( x ", r"\[ 1 \(", "$", "(", "/", "!", r"\boxed{", "x^", "9", "9 ", "9("]
)
def test_hostile_repetition_costs_linear_time(piece):
    """A quadratic rule would take minutes at the length of real completions; the limit is generous."""
    started = time.perf_counter()
    assert accuracy_reward([piece * (60_000 // len(piece))], ["1"]) == [0.0]
    assert time.perf_counter() - started < 10


def test_only_unclosed_formula_delimiters_are_removed():
    text = r"so \(x = 2\) and \[ y \] but \( no"
    assert without_open_formulas(text) == r"so \(x = 2\) and \[ y \] but  no"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_gold_gives_no_score(missing):
    said = [r"\boxed{7}", r"\boxed{None}", r"\boxed{nan}"]
    assert boxed_math(said, [missing] * 3, think=False) == [None] * 3
    assert accuracy_reward(said, [missing] * 3) == [None] * 3
    assert accuracy_reward([r"\boxed{7}", r"\boxed{8}"], [7, 7]) == [1.0, 0.0]


@pytest.mark.parametrize("broken", ["latex2sympy", "verify"])
def test_an_answer_that_breaks_math_verify_scores_zero(monkeypatch, broken):
    original, asked = getattr(formulas, broken), []

    def breaks(*given, **options):
        asked.append(given)
        if broken == "latex2sympy" and len(asked) == 1:  # the gold
            return original(*given, **options)
        raise RecursionError("too deep")

    monkeypatch.setattr(boxed, "read_formula", formulas.read_formula.__wrapped__)  # without its cache
    monkeypatch.setattr(formulas, broken, breaks)
    assert boxed_math([r"\boxed{7x}"], ["x+6x"], think=False) == [0.0]
    assert asked
