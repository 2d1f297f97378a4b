"""The exact parser against Fraction arithmetic, the Countdown reward against what `eval` graders accept."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.rewards.functions.countdown import countdown, solves
from grpo_jax.rewards.functions.expressions import MAX_DEPTH, MAX_LENGTH, parse

# A tree is an integer or (operation, left, right); rendered with all parentheses and evaluated on its own.
TREES = st.recursive(st.integers(0, 99), lambda t: st.tuples(st.sampled_from("+-*/"), t, t), max_leaves=8)


def render(tree):
    if isinstance(tree, int):
        return str(tree)
    operation, left, right = tree
    return f"({render(left)} {operation} {render(right)})"


def value(tree):
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[1]), value(tree[2])
    return {"+": left + right, "-": left - right, "*": left * right, "/": right and left / right}[tree[0]]


def divides_by_zero(tree):
    if isinstance(tree, int):
        return False
    return any(map(divides_by_zero, tree[1:])) or (tree[0] == "/" and value(tree[2]) == 0)


def leaves(tree):
    return (tree,) if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


@given(TREES)
def test_random_expressions_evaluate_exactly(tree):
    parsed = parse(render(tree))
    if divides_by_zero(tree):
        assert parsed is None
    else:
        assert parsed is not None
        assert (parsed.value, parsed.numbers) == (value(tree), leaves(tree))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=8), st.data())
def test_precedence_and_associativity_are_those_of_python(numbers, data):
    text, exact = str(numbers[0]), f"Fraction({numbers[0]})"
    for number in numbers[1:]:
        operation = data.draw(st.sampled_from("+-*/"))
        text += f" {operation} {number}"
        exact += f" {operation} Fraction({number})"
    parsed = parse(text)
    assert parsed is not None
    assert parsed.value == eval(exact)  # of our own text: Python's rules are the oracle


@given(st.text(alphabet="0123456789+-*/() .=eE_x\n\t²٣", max_size=40) | st.text(max_size=40))
def test_garbage_never_raises_and_what_parses_is_arithmetic(text):
    assert parse(text) is None or re.fullmatch(r"[0-9+\-*/()\s]+", text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "3**4", "3 * * 4", "7//2", "7 / / 2", "1.5*2", "1e3", "--3", "--3+4", "5--3", "2*-3", "+3", "-(--3)",
        "(3)(4)", "3(4)", "(3)4", "3 4", "()", "(3", "3)", "", " ", "+", "1+", "*2", "x", "3%2", "3,4", "1_0",
        "٣", "²", "97**98**4", "__import__('os')", "1/0", "1/(2-2)", "9" * 201, "1+" * 200 + "1",
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
    ],
)  # fmt: skip
def test_anything_but_plain_arithmetic_is_refused(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-3+4", 1),
        ("5-(-3)", 8),
        ("-(3+4)*2", -14),
        ("2-3-4", -5),
        ("8/4/2", 1),
        ("1/3*3", 1),
        ("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, 1),
    ],
)
def test_plain_arithmetic_has_its_exact_value(text, expected):
    parsed = parse(text)
    assert parsed is not None
    assert parsed.value == expected


@pytest.mark.parametrize("piece", ["(", "9", "1+", "9*", "-", " ", "<answer>", "<answer>1", "</answer>"])
def test_hostile_repetition_costs_linear_time(piece):
    text = piece * (400_000 // len(piece))
    start = time.perf_counter()
    solves(f"<answer>{text}</answer>", [1], 1)
    solves(text, [1], 1)
    parse("9*" * (MAX_LENGTH // 2 - 1) + "9")
    assert time.perf_counter() - start < 3.0


NUMBERS, TARGET = [19, 36, 55, 7], 65  # the case that the Mini-R1 write-up publishes; the texts are ours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("36 and 55 make 91, minus 26.</think>\n<answer> 55 + 36 - 7 - 19 </answer>", 1.0),
        ("Another order.</think>\n<answer>(55 - 19) + 36 - 7</answer>", 1.0),
        ("55 + 36 - 7 - 19 = 65, found without a tag", 0.0),
        ("<think>a</think><think>b</think> 55 + 36 - 19 - 7 = 65", 0.0),
        ("</think>\n<answer>55 + 36 - 7 - 18</answer>", 0.0),
        ("<answer>55 + 36 - 7 - 19 = 65</answer>", 1.0),
        ("<answer>55 + 36 - 7 - 19 = 66</answer>", 0.0),  # states something false
        ("<answer>55 + 36 - 7 - 19 = 65 = 65</answer>", 0.0),
        ("<answer>55 + 36 - 7 - 19 = 60 + 5</answer>", 0.0),
        ("<answer>55 + 36 - 7 - 19 =</answer>", 0.0),
        ("<answer>65 = 55 + 36 - 7 - 19</answer>", 0.0),
        ("<answer>65</answer>", 0.0),
        ("<answer>55 + 36 - 7 - 19 + 0</answer>", 0.0),  # a number that was not given
        ("<answer>55 + 36 - 7 - 19 + 7 - 7</answer>", 0.0),  # one used more than once
        ("<answer>1</answer> no: <answer>55+36-7-19</answer>", 1.0),  # the last one counts
        ("<answer>55+36-7-19</answer> no: <answer>1</answer>", 0.0),
        ("<answer>55+36-7-19", 0.0),
        ("<answer></answer>", 0.0),
    ],
)
def test_only_an_expression_of_the_given_numbers_that_hits_the_target_scores(text, expected):
    chat = [{"role": "assistant", "content": text}]
    columns = {"numbers": [NUMBERS] * 2, "target": [TARGET] * 2}
    assert countdown(["q"] * 2, [text, chat], **columns, other=[0, 0]) == [expected] * 2


@pytest.mark.parametrize(
    ("expression", "numbers", "target"),
    [("3**4", [3, 4], 81), ("7//2", [7, 2], 3), ("1.5*2", [1, 5, 2], 3), ("--3+4", [3, 4], 7)],
)
def test_what_eval_would_accept_scores_nothing(expression, numbers, target):
    assert not solves(f"<answer>{expression}</answer>", numbers, target)


def test_the_target_must_be_hit_exactly():
    assert solves("<answer>(1/3)*6</answer>", [1, 3, 6], 2)
    assert not solves("<answer>1000000/333333</answer>", [1000000, 333333], 3)


def test_rows_of_a_mixture_may_have_either_column():
    texts = ["<answer>3*4</answer>"] * 2
    assert countdown(["q"] * 2, texts, [[3, 4], None], target=[12, 12], nums=[None, [4, 3]]) == [1.0, 1.0]


def test_the_published_column_name_and_number_types_are_read():
    import numpy as np

    row = {"prompts": ["q"], "completions": ["<answer>3*4 = 12</answer>"]}
    assert countdown(**row, nums=[np.array([4, 3])], target=["12"]) == [1.0]
    assert countdown(**row, numbers=[["3", 4.0]], target=[12.0]) == [1.0]
    with pytest.raises(ValueError, match="numbers"):
        countdown(**row, target=[12])
