"""The GSM8K rewards against other graders' known faults, all real gold answers, and hostile text."""

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rewards.functions.gsm8k import final_number, gold_number, gsm8k, gsm8k_strict
from grpo_jax.rewards.functions.numbers import last_number, parse_number

WRITTEN = [
    ("72", 72),
    ("72.0", 72),
    ("72.", 72),
    ("-7", -7),
    ("−7", -7),
    ("+7", 7),
    ("1,080", 1080),
    ("1,234,567.5", Fraction(2469135, 2)),
    ("1{,}080", 1080),
    ("$18", 18),
    ("\\$18.50", Fraction(37, 2)),
    ("-$7", -7),
    ("$-7", -7),
    ("50%", 50),
    ("50\\%.", 50),
    ("3 1/2", Fraction(7, 2)),
    ("-3 1/2", Fraction(-7, 2)),
    ("7/2", Fraction(7, 2)),
    ("\\frac{7}{2}", Fraction(7, 2)),
    ("-\\dfrac{7}{2}", Fraction(-7, 2)),
    ("3\\frac12", Fraction(7, 2)),
    (".5", Fraction(1, 2)),
    ("1e3", 1000),
    ("", None),
    ("7/0", None),
    ("seven", None),
    ("7 dollars", None),
    ("10,80", None),
    ("9" * 100, None),
    ("1e999999999", None),
]


@pytest.mark.parametrize(("text", "expected"), WRITTEN)
def test_one_number_has_one_value_however_written(text, expected):
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so the change is -7", -7),  # not 7
        ("she walked 1,080 steps.", 1080),  # not 80
        ("each gets 3 1/2 pizzas", Fraction(7, 2)),  # neither 312 nor 1/2
        ("10-7", 7),  # a subtraction, not a sign
        ("(4)-7", 7),
        ("x = -7", -7),
        ("between 5 7/2", Fraction(7, 2)),  # no mixed number: the part is larger than one
        ("the total is **18**.", 18),
        ("It costs 18 dollars for 2 dozen", 2),  # the documented weakness of the rule
        ("CO2 and x_3", None),
        ("18 eggs<|im_end|>", 18),
        ("none", None),
    ],
)
def test_the_last_number_is_read_with_its_sign_commas_and_fraction(text, expected):
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 dozen, so \\boxed{18} for 2 dozen", 18),
        ("<answer>18 dollars for 2 dozen</answer>", 18),
        ("#### 18 dollars for 2 dozen", 18),
        ("<answer>5 * 3 + 3 = 18</answer>", 18),
        ("<answer>\\boxed{18}</answer>", 18),
        ("<answer>the total is $18</answer> I used 3 steps", 18),
        ("\\boxed{5} was wrong, <answer>18</answer>", 18),  # the later mark decides
        ("<answer>5</answer> no: \\boxed{18}", 18),
        ("\\boxed{5} #### 18", 18),
        ("\\boxed{\\text{18 dollars}}", 18),
        ("\\boxed{\\frac{7}{2}}", Fraction(7, 2)),
        ("\\boxed{1{,}080}", 1080),
        ("<answer>- 7</answer>", -7),
        ("#### - 7", -7),
        ("<answer>\u20137</answer>", -7),  # an en dash
        ("from 3\u20137 days, so <answer>3\u20137</answer>", None),
        ("\\boxed{5} so\n#### **72**", 72),
        ("#### 1. Count the eggs\nThe answer is 18", 18),  # a Markdown heading, not an answer
        ("#### 18.", 18),
        ("#### Answer\n18", 18),
        ("I counted 18. <answer>I do not know</answer>", None),  # no credit for a number on the way
        ("<answer>18", 18),  # cut off: the last-number rule
        ("\\boxed{18", 18),
        ("\\boxed{}", None),
        ("", None),
    ],
)
def test_a_marked_answer_takes_precedence_over_the_last_number(text, expected):
    assert final_number(text) == expected


EXPRESSIONS = [
    "2^6", "30-4", "6*7", "4!", "7x", "6\\sqrt2", "6\\cdot 7", "6 \\times 7", "6 x 7", "6(7)", "5\\pi", "\\sqrt{16}",
    "x+5", "x^2", "(30-4)", "2**6", "1/x", "|-5|", "f(5)", "2³", "√16", "3\\pm 1", "x<5", "43_6", "the total is 6*7",
    "3 5", "3, 5", "3 or 5", "3:5", "10,80",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_no_number_in_an_expression_or_a_list_is_the_answer(expression):
    for written in ("\\boxed{%s}", "<answer>%s</answer>", "2 of 9, so \\boxed{%s} and that is it"):
        assert final_number(written % expression) is None
    numbers = ["1", "2", "3", "4", "5", "6", "7", "16", "30", "43", "10", "80"]
    for reward in (gsm8k, gsm8k_strict):
        assert (
            sum(reward([""] * 12, [f"#### {expression}"] * 12, numbers)) == 0
            or expression[0] not in "0123456789"
        )


@pytest.mark.parametrize(
    ("stated", "number"),
    [
        ("8+9=17", 17),
        ("17 = 8+9", 17),
        ("5 * 3 + 3 = 18 apples", 18),
        ("2 \\cdot 9 = 18", 18),
        ("72 because 3*24=72", 72),
        ("18 kg", 18),
        ("18m", 18),
        ("60 km/h", 60),
        ("18 (2 each)", 18),
        ("18, 2 of them", 18),
        ("18 - that is all", 18),
        ("100\\,\\text{cm}^2", 100),
        ("18^\\circ", 18),
        ("\\$18", 18),
        ("26\\,000", 26000),
        ("26\\;000", 26000),
        ("26\u202f000", 26000),
        ("26'000", 26000),
        ("26 000", 26000),
        ("1{,}00{,}000", 100000),
        ("2\\,\\frac12", Fraction(5, 2)),
        ("2\\ 1/2", Fraction(5, 2)),
        ("-\\,7", -7),
    ],
)
def test_the_number_that_is_stated_counts_in_every_mark(stated, number):
    for written in ("\\boxed{%s}", "<answer>%s</answer>", "so\n#### %s"):
        assert final_number(written % stated) == number or (written[0] == "s" and stated == "26 000")


@given(
    st.integers(1, 999),
    st.integers(1, 999),
    st.sampled_from(["+", "-", "*", "/", "^", " - ", r" \times ", r"\cdot"]),
)
@settings(deadline=None)
def test_an_equation_states_its_result_and_neither_operand(one, other, operator):
    result = one + other + 1000
    for written in ("\\boxed{%s}", "#### %s"):
        assert final_number(written % f"{one}{operator}{other}={result}") == result
        alone = final_number(written % f"{one}{operator}{other}")
        assert alone == (Fraction(one, other) if operator == "/" else None)


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        ("#### 72", 1.0, 1.0),
        ("so\n#### 72.00 dollars", 1.0, 1.0),
        ("####72", 1.0, 1.0),
        ("#### $72", 1.0, 1.0),
        ("#### 5\nno, wait\n#### 72", 1.0, 1.0),
        ("The answer is 72.", 1.0, 0.0),
        ("\\boxed{72}", 1.0, 0.0),
        ("#### 7", 0.0, 0.0),
        ("#### -72", 0.0, 0.0),
        ("#### 720", 0.0, 0.0),
        ("#### 1. First 72", 1.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("gold", ["72", "48/2 = <<48/2=24>>24\n#### 72", 72, 72.0])
def test_strict_requires_the_mark_and_flexible_does_not(text, flexible, strict, gold):
    chat = [{"role": "assistant", "content": text}]
    assert gsm8k(["q"] * 2, [text, chat], [gold] * 2) == [flexible] * 2
    assert gsm8k_strict(["q"] * 2, [text, chat], [gold] * 2, other=[1, 2]) == [strict] * 2


def test_a_gold_without_a_number_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="not a number"):
        gsm8k(["q"], ["#### 72"], ["seventy-two"])


def test_every_real_gold_answer_is_right_against_itself(shared_data):
    golds = []
    for name in ("train", "test"):
        lines = (shared_data / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        golds += [json.loads(line)["answer"] for line in lines]
    assert len(golds) == 8792
    numbers = [gold.rpartition("####")[2].strip() for gold in golds]
    assert sum(gsm8k(golds, golds, numbers)) == 8792
    assert sum(gsm8k_strict(golds, golds, golds)) == 8792
    boxed = [f"so \\boxed{{{number}}} for 2 dozen" for number in numbers]
    assert sum(gsm8k(golds, boxed, golds)) == 8792
    assert sum(gsm8k(golds, [f"#### {gold_number(n) + 1}" for n in numbers], golds)) == 0


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6))
def test_any_fraction_reads_back(number):
    assert parse_number(str(number)) == number
    assert final_number(f"2 of 3, hence \\boxed{{{number}}}, see page 4") == number


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_change_nothing(number):
    assert parse_number(f"{number:,}") == parse_number(str(number)) == number


@given(st.text(alphabet="0123456789.,-+$%/ #=\\{}<>answerboxdftc|\n", max_size=80))
def test_garbage_never_raises(text):
    gsm8k([""], [text], ["1"])
    gsm8k_strict([""], [text], ["1"])


HOSTILE = [
    "1", "1,", "1,111", ",111", "1.", "1 ", "1/", "1 1", "1e", "-", "$", "#", "#### ", "#### 1. a", "=1",
    "\\boxed{", "\\boxed{1}", "{", "\\frac{", "\\frac{1", "3\\frac12", "<answer>", "<answer>1", "</answer>",
    "<answer>1</answer>", " ", "\n", "a1",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_repetition_costs_linear_time(piece):
    text = piece * (400_000 // len(piece))
    start = time.perf_counter()
    gsm8k(["", ""], [text, "1 " + text], ["1", "1"])
    assert time.perf_counter() - start < 3.0  # a quadratic rule needs minutes
