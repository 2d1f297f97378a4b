"""Answers are found strictly and flexibly; equal answers are the same."""

import time

import pytest

from grpo_jax.evaluation.answers import KINDS, PLACES, after_thought, elected, written
from grpo_jax.rewards.functions.gsm8k import gsm8k, gsm8k_strict

# kind, place, text, the strict and the flexible answer
READ = [
    ("number", "hash", "16 - 7 = 9. 9 * 2\n#### 18", "18", "18"),
    ("number", "hash", "so it is $1,080.", None, "1080"),
    ("number", "hash", r"\boxed{7}, not 8", None, "7"),
    ("number", "hash", "#### 1. Add them up\n3 + 4 is 7", None, "7"),
    ("number", "tag", "<answer>3 1/2</answer>", "7/2", "7/2"),
    ("number", "tag", "no idea", None, None),
    ("math", "box", r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{1}{2}"),
    ("math", "box", r"<think>\boxed{1}</think> It is $x = \sqrt{2}$.", None, "1"),
    ("math", "box", r"<think>\boxed{1}", None, "1"),
    ("math", "box", r"It is $x = \sqrt{2}$.", None, r"\sqrt{2}"),
    ("math", "box", "the answer is 12", None, "12"),
    ("choice", "tag", "<answer>(c)</answer>", "C", "C"),
    ("choice", "tag", "<answer>C) the third</answer>", "C", "C"),
    ("choice", "tag", "<answer>Carbon</answer>", None, None),
    ("choice", "tag", "<answer>I think (B)</answer>", "B", "B"),
    ("choice", "tag", "<answer>a dog</answer>", None, None),
    ("choice", "tag", "<answer>B. a dog (A)</answer>", "B", "B"),
    ("choice", "tag", "<answer>(A) or (B)</answer>", "A", "A"),
    ("choice", "tag", "<answer>one of (A), (B)</answer>", None, "B"),
    ("choice", "box", r"\boxed{\textbf{(D)}}", "D", "D"),
    ("choice", "box", r"\boxed{\mathrm{D}}", "D", "D"),
    ("choice", "tag", "A is out. The answer is **B**, not (D)", None, "B"),
    ("choice", "tag", r"\boxed{\text{D}}", None, "D"),
    ("expression", "tag", "<think>9+5</think><answer>9 + 3 - 5</answer>", "9 + 3 - 5", "9 + 3 - 5"),
    ("expression", "tag", "first 9+5=14, then (9 + 3) - 5 = 7.", None, "(9 + 3) - 5"),
    ("expression", "tag", "I tried 3 × 4 and gave up", None, "3 * 4"),
    ("expression", "tag", "<answer>__import__('os')</answer>", None, None),
    ("people", "tag", "<answer>(1) Zoey is a knight</answer>", "zoey is a knight", "zoey is a knight"),
    (
        "people",
        "tag",
        "If Zoey is a knave, Ava lies. So:\n(1) Zoey is a knight\n(2) Ava is a knave",
        None,
        "ava is a knave, zoey is a knight",
    ),
    ("code", "fence", "Try\n```python\nprint(1)\n```\nor\n```python\nprint(2)\n```", "print(2)", "print(2)"),
    ("code", "fence", "print(3)", None, "print(3)"),
    ("code", "fence", "1. So:\n   ```python\n   print(4)\n   ```", "print(4)", "print(4)"),
    ("text", "tag", "It is\nblue.", None, "blue."),
]


@pytest.mark.parametrize(("kind", "place", "text", "strict", "flexible"), READ)
def test_answers_are_found_where_they_stand(kind, place, text, strict, flexible):
    found = [KINDS[kind].strict(text, place), KINDS[kind].flexible(text)]
    assert [answer and answer.text for answer in found] == [strict, flexible]


CHOSEN = [
    ("Neither (A) nor (D) fits. The final answer is: C", "C"),
    ("The answer is: **C**. Note that (D) is a trap.", "C"),
    ("Answer: I would take B.", "B"),
    ("I choose option D because (B) breaks causality.", "D"),
    ("<answer>Option B</answer>", "B"),
    ("<answer>The answer is C</answer>", "C"),
    ("<answer>I choose D, since (A) is wrong</answer>", "D"),
    ("Let's go with D", "D"),
    ("So B is correct.", "B"),
    ("The correct option is A because it fits", "A"),
    ("I do not choose B. The answer must be C", "C"),
    ("Option A is wrong, so (B).", "B"),
    ("(A) is false. (B) is false. (C) holds.", "C"),
    ("It cannot be (A), so it is (D)", "D"),
    ("The answer is A.\nWait, the answer is B.", "B"),
    ("The answer is not A, but B", "B"),
    ("The answer isn't B; it's (C).", "C"),
    ("We select (B) over (C).", "B"),
    ("Answer: I", "I"),
    ("Final Answer: \\textbf{(E)}", "E"),
    ("The answer is a cat", None),
    ("A dog barks at a cat", None),
]


@pytest.mark.parametrize(("text", "letter"), CHOSEN)
def test_the_letter_that_is_chosen_is_found_among_those_that_are_named(text, letter):
    found = KINDS["choice"].flexible(text)
    assert (found and found.text) == letter


@pytest.mark.parametrize("letter", "BCDEFGH")
@pytest.mark.parametrize("other", "AIJ")
@pytest.mark.parametrize(
    "form",
    [
        "The answer is {}",
        "Answer: ({}).",
        "I would pick {}.",
        "**{}** is the right answer",
        "I am going with option {}",
    ],
)
def test_a_letter_that_is_ruled_out_is_never_taken(letter, other, form):
    before = f"Option {other} is wrong. "
    behind = f" It is not ({other})."
    for text in (form, before + form, form + behind, before + form + behind):
        assert KINDS["choice"].flexible(text.format(letter)).text == letter


FORMULAS = [
    ("It costs $16. Later it costs $23.", "23"),
    ("the pen is $4 and the sum is $19", "19"),
    ("between $5-$7", "7"),
    ("let $x$ be it. So it costs $1,080.", "1080"),
    ("it costs \\$5 and \\$6.50", "13/2"),
    ("costs $16 and $x$ is left", "x"),
    ("$16 + $4 = $20", "20"),
    ("pay $3.50, i.e. $\\frac{7}{2}$ dollars", "\\frac{7}{2}"),
    ("$5 each, so $5 \\cdot 3 = 15$", "15"),
    ("the sum is $12$ dollars", "12"),
    ("$$x=7$$", "7"),
    ("so \\(x=5\\).", "5"),
    ("so \\[x=9\\]", "9"),
]


@pytest.mark.parametrize(("text", "formula"), FORMULAS)
def test_sums_of_money_are_no_formulas(text, formula):
    assert KINDS["math"].flexible(text).text == formula


@pytest.mark.parametrize(
    "piece", [" ", "\n ", "_", "a_", "answer ", "answer is ", "I ", "(A) ", "not ", "$", "$1 ", "$a", "\\("]
)
def test_finding_an_answer_in_a_hostile_text_takes_linear_time(piece):
    text = "The answer" + piece * (60_000 // len(piece)) + "x"
    begun = time.perf_counter()
    for kind in ("choice", "math", "number", "people"):
        KINDS[kind].flexible(text)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["", " ", "<answer></answer>", r"\boxed{", "####", "```\n```", "</think>", "("]
)
def test_a_text_without_an_answer_gives_none(kind, text):
    for place in PLACES:
        assert KINDS[kind].strict(text, place) is None
    assert KINDS[kind].find("") is None


@pytest.mark.parametrize("place", PLACES)
def test_a_written_answer_is_read_back_from_its_place(place):
    assert PLACES[place](f"then\n{written(place, '3+4')}")[1].strip() == "3+4"


def test_thinking_holds_no_answer():
    assert [after_thought(text) for text in ("a", "<think>a", "<think>a</think>b", "a</think>b")] == [
        "a",
        None,
        "b",
        "b",
    ]


SAME = [
    ("math", r"\frac{1}{2}", "0.5", True),
    ("math", r"\dfrac{1}{2}", r"\frac12", True),
    ("math", r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
    ("math", r"\sqrt{8}", r"2\sqrt{2}", True),
    ("math", "90^\\circ", "90", True),
    ("math", r"\text{Evelyn}", "evelyn", True),
    ("math", "listen", "silent", False),
    ("math", "2", "3", False),
    ("math", r"(1,2)", "(2,1)", False),
    ("expression", "9+3-5", "(3 + 9) - 5", True),
    ("expression", "9+3-5", "9-2", False),
    ("expression", "9+3-5", "9+3-5=7", True),
    ("expression", "9+3-5", "9+3-5=8", False),
    ("people", "Zoey is a knight, Ava is a knave", "ava is a knave; zoey is a knight", True),
    ("text", "Blue.", "blue", True),
]


@pytest.mark.parametrize(("kind", "one", "other", "same"), SAME)
def test_equal_answers_are_the_same(kind, one, other, same):
    kind = KINDS[kind]
    one, other = kind.read(one, "box"), kind.read(other, "box")
    assert kind.same(one, other) is kind.same(other, one) is same
    votes = elected(kind, [one, None, other, one])
    assert votes[1] is None
    assert votes[0] == votes[3]
    assert (votes[0] == votes[2]) is same


TEXTS = [text for kind, _, text, *_ in READ if kind == "number"] + ["-7", "", "#### -3", r"#### 5 \boxed{6}"]


@pytest.mark.parametrize("text", TEXTS)
def test_scores_equal_those_of_the_rewards(text):
    """Strict and flexible are `gsm8k_strict` and `gsm8k`, where there is no thinking."""
    number = KINDS["number"]
    for gold in ("18", "7", "-3", "5", "6", "1080", "3.5"):
        ours = [
            answer is not None and number.same(number.gold(gold), answer)
            for answer in (number.strict(text, "hash"), number.flexible(text))
        ]
        assert ours == [bool(reward([""], [text], [gold])[0]) for reward in (gsm8k_strict, gsm8k)]


@pytest.mark.parametrize(("kind", "gold"), [("number", "many"), ("choice", "none"), ("people", "nobody")])
def test_an_invalid_gold_answer_is_refused(kind, gold):
    with pytest.raises(ValueError, match="gold answer"):
        KINDS[kind].gold(gold)
