"""Cleaning: bad problems are dropped, good ones kept, and every row is counted."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax.data.curation.cleaning import REASONS, RULES, clean
from grpo_jax.data.curation.noise import stripped
from grpo_jax.data.layouts import named, plain, recognise
from grpo_jax.data.sources import load_rows

MATH = named("problem_answer")


def reason(problem, answer="7", **columns):
    """What a row is dropped for, or None."""
    outcome = clean([{"problem": problem, "answer": answer, **columns}], MATH)
    return outcome.dropped[0].reason if outcome.dropped else None


BAD = [
    ("multi_part", "Let $f(x) = x^2$. (a) Find $f(2)$. (b) Find $f(3)$."),
    ("multi_part", "A car drives 60 miles.\n1. How long does it take?\n2. What is its speed?"),
    ("multi_part", "Given the set. (i) Determine its size. (ii) Is it finite?"),
    ("multi_part", "Part A: What is 2 + 2? Part B: What is 3 + 3?"),
    ("multi_part", "已知函数。(1) 求最小值; (2) 求最大值。"),
    ("proof", "Prove that $\\sqrt{2}$ is irrational."),
    ("proof", "Let $a, b$ be integers. Show that $a^2 + b^2 \\ge 2ab$."),
    ("proof", "Let $n > 1$. Prove: $n^2 > n$."),
    ("proof", "证明:根号二是无理数。"),
    ("image", "In the figure, $ABC$ is a triangle with a right angle at $B$. Find $AC$."),
    ("image", "What is the area of the shaded region shown in the diagram?"),
    ("image", "Find x. ![](https://cdn.example.com/a.png)"),
    ("image", "[asy] draw((0,0)--(1,1)); [/asy] Find the slope."),
    ("image", "The circles below touch, as shown. See figure 2. Find the radius."),
    ("image", "The graph below shows sales. What was the maximum?"),
    ("image", "如图,求角的大小。"),
    ("table", "The table below lists prices. What is the mean?"),
    ("table", "| a | b |\n|---|---|\n| 1 | 2 |\nWhat is the sum of b?"),
    ("table", "\\begin{tabular}{cc} 1 & 2 \\end{tabular} Find the sum."),
]
GOOD = [
    "Which is larger: (A) 3 (B) 4 (C) 5?",
    "Consider the statements: (1) every square is a rectangle. (2) every rectangle is a square. How many are true?",
    "If $f(a) + f(b) = 7$, what is $f(a + b)$?",
    "Ann wants to show that she can save. How much does she save in 3 weeks at $5 a week?",
    "The distance between table 1 and table 3 is 400 meters. How far apart are neighbours?",
    "How many people are in the picture that Bob drew if he drew 3 people on each of 4 pages?",
    "She tries to figure out how much 8 pens cost at $2 each. What do they cost?",
    "The graph of $y = x^2 + 1$ meets $y = 5$ at two points. What is their distance?",
    "Bob downloads files from the server at 2 GB a minute. How long does a 200 GB file take?",
    "Set up the equation $a <b$ and $c> d$. What is the least sum?",
    "Ann skates a figure 8 in 12 seconds. How long do 5 of them take?",
    "A table costs $30. Two tables and a chair cost $75. What does a chair cost?",
    "Shift the graph to the right by 3 units. What is its new vertex?",
    "What is the area of the region under the graph above the $x$-axis?",
    "The picture above the door is 40 cm wide. How many fit into 2 m?",
    "Which is prime?\n(a) 4\n(b) 5\n(c) 6",
    "1. Ann has 3 apples.\n2. Bob has 4 apples.\nHow many have they?",
    "Prove that the sum of the first ten odd numbers is a square. What is its root?",
    "Find all integers $n$ such that (n+1) divides 12 and prove your answer is complete.",
]


@pytest.mark.parametrize(("why", "problem"), BAD)
def test_a_bad_problem_is_dropped(why, problem):
    assert reason(problem) == why


@pytest.mark.parametrize("problem", GOOD)
def test_a_good_problem_is_kept(problem):
    assert reason(problem) is None


@pytest.mark.parametrize("answer", [None, "", "  ", "N/A", "proof", "$-$", "unknown."])
def test_a_row_without_an_answer_is_dropped(answer):
    assert reason("What is 3 + 4?", answer) == "no_answer"


@pytest.mark.parametrize(
    "answer", ["3 or 5", "x = 1; y = 2", "1, 2", "3 \\text{ and } 5", "$2$ or $-3$", "\\frac{1}{2}, 4"]
)
def test_a_row_with_several_answers_is_dropped(answer):
    assert reason("Solve it.", answer) == "several_answers"


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "7",
            0,
            "-3.5",
            "1,234",
            "10,\\!080",
            "1{,}000",
            "\\left( 3, \\frac{\\pi}{2} \\right)",
            "1,234,567",
            "(1, 2)",
            "\\{1, 2\\}",
            "[0, 1)",
            "(-\\infty, 2) \\cup (3, 4)",
        ),
        *("\\frac{1}{2}", "x^2 + 1", "salt and pepper", "18 dollars", "C", "\\text{Monday}", "f(1, 2)"),
        "(1) Ann is a knight\n(2) Bob is a knave",
    ],
)
def test_one_answer_counts_as_one_however_it_is_written(answer):
    assert reason("What is it?", answer) is None


def test_an_answer_that_its_solution_contradicts_is_dropped():
    solution = "So it is $\\boxed{8}$."
    assert reason("What is 3 + 4?", "7", solution=solution) == "contradiction"
    assert reason("What is 3 + 4?", "8.0", solution=solution) is None
    assert reason("What is 3 + 4?", "1,000", solution="$\\boxed{1000}$") is None
    # Whether two formulas are equal is not for text to say.
    assert reason("What is it?", "\\frac12", solution="$\\boxed{0.5}$") is None


def test_a_question_with_two_different_answers_is_dropped():
    rows = [
        {"problem": text, "answer": answer} for text, answer in (("A  b?", "1"), ("c?", "1"), ("A b?", "2"))
    ]
    outcome = clean(rows, MATH)
    assert [(d.row, d.reason) for d in outcome.dropped] == [(1, "conflict"), (3, "conflict")]
    assert outcome.dropped[0].found == "row 3 asks the same with another answer"
    assert clean([rows[0], {**rows[0]}], MATH).dropped == []
    written = ["1,000", "$1000.0$"], ["\\dfrac12", "$\\frac 12$"], ["(1, 2)", "\\left(1,2\\right)"]
    for pair in written:
        assert clean([{"problem": "What?", "answer": answer} for answer in pair], MATH).dropped == []


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        ({"problem": "Compute 2+3.", "answer": ""}, "no_answer"),
        ({"problem": "Compute 2+3.", "answer": "5 or 6"}, "several_answers"),
        ({"problem": "Compute 2+3.", "answer": "6", "solution": "\\boxed{5}"}, "contradiction"),
    ],
)
def test_a_bad_copy_does_not_drop_a_good_row(copy, why):
    good = {"problem": "Compute  2+3.", "answer": "5"}
    for rows in ([good, copy], [copy, good]):
        outcome = clean(rows, MATH)
        assert outcome.kept == [{**good, "problem": outcome.kept[0]["problem"]}]
        assert [d.reason for d in outcome.dropped] == [why]
    if why == "several_answers":
        assert len(clean([good, copy], MATH, allow=[why]).dropped) == 2, "what is allowed is an answer"


CODE = "Write a function that returns the sum of a list."


@pytest.mark.parametrize(
    ("why", "problem"),
    [
        ("network", "Write a program that downloads the page at a URL and counts its words."),
        ("network", "```python\nimport requests\n```\nUse it to get the title."),
        ("files", "Read the numbers from the file numbers.txt and print their sum."),
        ("files", "Complete open('data', 'r') to count lines."),
        ("environment", "Use tkinter to show a button."),
        ("environment", "Write a SQL query for all users."),
        (None, CODE),
        (None, "The first line of input holds n. Print the n-th prime. See the figure below for n = 3."),
        (None, "Given the URL 'https://a.com/b', return its host."),
    ],
)
def test_a_program_that_needs_more_than_the_sandbox_is_dropped(why, problem):
    row = {"problem": problem, "answer": None, "tests": ["assert f([1]) == 1"]}
    dropped = clean([row], MATH).dropped
    assert (dropped[0].reason if dropped else None) == why


def test_a_url_in_a_programming_task_is_kept():
    row = {"problem": "Return the host of https://a.com/b.", "answer": "", "tests": ["x"]}
    assert clean([row], MATH).kept == [row]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("link", "See https://a.com/x?y=1. Find x.", "See . Find x."),
        ("link", "A [square](https://a.com) has 4 sides.", "A square has 4 sides."),
        ("link", "Find x (https://a.com).", "Find x."),
        ("markup", "x<sup>2</sup> + y<sub>1</sub><br>Find x&nbsp;&lt; 3", "x^{2} + y_{1}\nFind x < 3"),
        ("markup", '<p class="q"><b>Find</b> x.</p>', "Find x."),
        ("label", "(2019 AMC 10A, Problem 5) Find x.", "Find x."),
        ("label", "Find x. (5 points)", "Find x."),
        ("label", "[AIME 2021] Find x.", "Find x."),
        ("label", "Find x.\nTranslate the above text into English, please.", "Find x."),
        ("numbering", "Problem 12. Find x.", "Find x."),
        ("numbering", "3.14. Find x.", "Find x."),
        ("numbering", "7. A man walks.", "A man walks."),
        ("invisible", "Find\u200b x\u00a0now", "Find x now"),
        ("spaces", "  Find x.  \n\n\n\nNow.\n", "Find x.\n\nNow."),
    ],
)
def test_noise_is_stripped(kind, before, after):
    text, kinds = stripped(before)
    assert text == after
    assert kind in kinds


@pytest.mark.parametrize(
    "text",
    [
        "3.5 meters are how many feet?",
        "If a <b> c and d, what is e?",
        "Is $a<b$ or $b>a$?",
        "A test has 20 questions (5 points) each. What is the best score?",
        "In 2019 Ann was 12. How old is she in 2025?",
        "Solve x & y: $\\begin{matrix} 1 & 2 \\end{matrix}$",
    ],
)
def test_text_that_only_looks_like_noise_is_kept(text):
    assert stripped(text) == (text, [])


def test_stripping_is_idempotent():
    for _, problem in BAD:
        once, _ = stripped(problem)
        assert stripped(once)[0] == once


def test_only_the_text_of_the_problem_changes():
    row = {"question": "1. How  many? https://a.com/b", "answer": "#### 7", "level": 3}
    outcome = clean([row], recognise(row))
    assert outcome.kept == [{"question": "How  many?", "answer": "#### 7", "level": 3}]
    assert outcome.figures["stripped"] == {"link": [1], "numbering": [1], "spaces": [1]}
    chat = {"messages": [{"role": "system", "content": "1. Be"}, {"role": "user", "content": "1. How?"}]}
    assert clean([chat], recognise(chat)).kept[0]["messages"] == [
        {"role": "system", "content": "1. Be"},
        {"role": "user", "content": "How?"},
    ]


def test_a_row_that_the_layout_cannot_read_is_dropped_as_unusable():
    rows = [
        {"question": "a?", "answer": "#### 7"},
        {"question": "b?", "answer": "seven"},
        {"question": "", "answer": "#### 7"},
    ]
    outcome = clean(rows, recognise(rows[0]))
    assert [(d.row, d.reason) for d in outcome.dropped] == [(2, "unusable"), (3, "unusable")]
    assert "no number after '####'" in outcome.dropped[0].found


def test_a_row_for_fine_tuning_needs_a_response_but_no_single_answer():
    row = {
        "problem": "What?",
        "answer": "1, 2",
        "generations": ["<think>a</think>b"],
        "correctness_math_verify": [True],
    }
    layout = named("openr1_math")
    assert clean([row], layout, "sft").dropped == []
    assert clean([row], layout, "rl").dropped[0].reason == "several_answers"
    assert clean([{"prompt": "a", "completion": "b"}], plain(), "sft").dropped == []
    assert clean([{"prompt": "a"}], plain(), "sft").dropped[0].reason == "unusable"
    lost = clean([{**row, "generations": ["<think>a"]}], layout, "sft").dropped
    assert lost[0].reason == "unusable"


def test_an_allowed_reason_drops_no_row():
    row = {"problem": "Prove that 1 = 1.", "answer": "1, 2"}
    assert clean([row], MATH, allow=["proof"]).dropped[0].reason == "several_answers"
    assert clean([row], MATH, allow=["proof", "several_answers"]).kept == [row]


def test_every_reason_has_a_case():
    tested = {why for why, _ in BAD} | {"network", "files", "environment"}
    tested |= {"no_answer", "several_answers", "contradiction", "conflict", "unusable"}
    assert tested == set(REASONS) == {"unusable", "conflict", *RULES}


HOSTILE = (
    *(
        "a\n",
        "( ",
        "(2019 ",
        "<b>",
        "a-",
        "a.b ",
        "\t",
        "7,",
        "[a](https://a.b ",
        "prove ",
        "figure ",
        "(a) ",
        "--|",
        "1",
    ),
    *("<b x=1 ", "the ", "?", "$", ". ", "task 1. ", "read ", "(1)", "https://a", "&#", "\\boxed{"),
)


@pytest.mark.parametrize("code", [False, True])
def test_the_time_for_a_hostile_text_is_not_quadratic(code):
    """Each takes some hundredths of a second, and many seconds where a pattern starts over at every place."""
    rows = [{"problem": part * (30_000 // len(part)) + "x", "answer": part * 9_000} for part in HOSTILE]
    rows = [{**row, "tests": "x"} for row in rows] if code else rows
    started = time.process_time()
    assert clean(rows, MATH).read == len(HOSTILE)
    assert time.process_time() - started < 20


texts = st.one_of(st.text(max_size=60), st.sampled_from([problem for _, problem in BAD] + GOOD))
answers = st.one_of(st.none(), st.text(max_size=10), st.sampled_from(["7", "3 or 5"]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.fixed_dictionaries({"problem": st.one_of(texts, st.none()), "answer": answers}), max_size=12)
)
def test_every_row_is_either_kept_or_dropped_with_a_reason(rows):
    for number, row in enumerate(rows):
        row["id"] = number
    for layout in (MATH, plain("problem")):
        outcome = clean(rows, layout)
        assert outcome.read == len(rows)
        assert sorted([row["id"] for row in outcome.kept] + [d.row - 1 for d in outcome.dropped]) == list(
            range(len(rows))
        )
        assert all(rows[d.row - 1] is d.columns for d in outcome.dropped)
        assert all(d.reason in REASONS and d.found for d in outcome.dropped)


def test_every_row_of_gsm8k_is_kept(shared_data):
    rows = load_rows(shared_data / "gsm8k", "train")
    outcome = clean(rows, recognise(rows[0]))
    assert (outcome.dropped, len(outcome.kept)) == ([], 7473)
    assert {kind: len(n) for kind, n in outcome.figures["stripped"].items()} == {"invisible": 5}
