"""Knights and knaves: the scores of answers, and Logic-RL's four totals."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.config import GRPOConfig, load_settings
from grpo_jax.data.sources import load_rows
from grpo_jax.rewards.functions.knights import knights_and_knaves, logic_rl

ANSWER = "(1) Zoey is a knight\n(2) Sam is a knave"
RIGHT = f"<think>hm</think><answer>{ANSWER}</answer>"


def scores(text, prompt="p"):
    return logic_rl([prompt], [text], answer=[ANSWER])[0], knights_and_knaves([text], answer=[ANSWER])[0]


@pytest.mark.parametrize(
    ("text", "logic", "right"),
    [
        (RIGHT, 3, 1),
        ("<think></think><answer>sam is a KNAVE; Zoey is a knight.</answer>", 3, 1),
        ("<think>x</think><answer>Zoey is a knave, Sam is a knave</answer>", -0.5, 0),
        ("<think>x</think><answer>Zoey is a knight</answer>", -1, 0),  # one is missing
        (f"<think>x</think><answer>{ANSWER}, Bob is a knave</answer>", 3, 0),  # one too many
        (f"<think>x</think><answer>{ANSWER}, so she is a knight, is he is a knave</answer>", 3, 0),
        (f"<think>x</think><answer>{ANSWER}, Bob is a knave, Bob is a knight</answer>", 3, 0),
        ("<think>x</think><answer>She is a knight, Bob is a knave</answer>", -1, 0),
        (f"<think>x</think><answer>{ANSWER}, Zoey is a knave</answer>", -1, 0),  # both
        ("<think>x</think><answer>Zoey is not a knave, Sam is a knave</answer>", -1, 0),
        ("<think>x</think><answer></answer>", -1, 0),
        (f"<answer>{ANSWER}</answer>", -3, 1),  # no thought: correct, in the wrong form
        (f"</think><think><answer>{ANSWER}</answer>", -3, 1),
        (RIGHT + RIGHT, -3, 1),
        (f"<think>x</think>{ANSWER}", -3, 0),
        ("", -3, 0),
    ],
)
def test_each_kind_of_answer_has_its_score_in_both_rewards(text, logic, right):
    assert scores(text) == (logic, right)


@pytest.mark.parametrize(
    "said",
    [
        "**Zoey** is a **knight**; **Sam** is a **knave**",
        "**Zoey** is a knight, __Sam__ is a knave",
        "Zoey is a **knight**, Sam is a _knave_.",
        "**Zoey is a knight**\n***Sam** is* a `knave`",
        "Zoey: knight\nSam: knave",
        "- **Zoey:** Knight\n- **Sam**:a *knave*",
        "* _Zoey_ : a knight\n* _Sam_ : a knave",
    ],
)
def test_a_correct_answer_in_markdown_is_read(said):
    assert scores(f"<think>a</think><answer>{said}</answer>") == (3, 1)


def test_a_name_keeps_its_underscores():
    said = ["<answer>person_1 is a knight, __person_2__: knave</answer>"]
    answer = ["person_1 is a knight\nperson_2 is a knave"]
    assert knights_and_knaves(said, answer=answer) == [1.0]
    assert knights_and_knaves(said, answer=[answer[0].replace("_", "")]) == [0.0]


NAMES = [
    "Mary Ann",
    "Lee Ann",
    "Ann",
    "Mary-Jane",
    "Jane",
    "O'Neil",
    "Neil",
    "José",
    "Jose",
    "Ludwig van Dyke",
    "Dr. Who",
    "Rose",
]


def judged(gold, said):
    """By `knights_and_knaves`, and whether `logic_rl` gives full marks."""
    text = f"<think>x</think><answer>{said}</answer>"
    return knights_and_knaves([text], answer=[gold])[0], logic_rl(["p"], [text], answer=[gold])[0] == 3


@given(
    st.permutations(NAMES),
    st.booleans(),
    st.sampled_from(["{} is a {}", "**{}**: {}", "So {} is a {}", "- {} is a **{}**."]),
)
@settings(deadline=None, max_examples=60)
def test_a_name_of_several_words_counts_as_a_whole(names, right, form):
    name, other = names[:2]
    gold = f"(1) {name} is a knight (2) {other} is a knave"
    said = "\n".join(form.format(*one) for one in [(name, "knight"), (other, "knave")])
    assert judged(gold, said) == (1, True)
    swapped = "\n".join(form.format(*one) for one in [(name, "knave"), (other, "knight")])
    assert judged(gold, swapped) == (0, False)
    assert judged(f"(1) {name} is a knight", form.format(other, "knight")) == (0, False)


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        ("Mary Rose", "Rose", False),
        ("Rose", "Mary Rose", False),
        ("Mary-Jane", "Jane", False),
        ("O'Neil", "Neil", False),
        ("O'Neil", "O’Neil", True),
        ("Jean-Luc", "Jean\u2011Luc", True),
        ("José", "Jose\u0301", True),
        ("José", "Jose", False),
        ("Mary Ann", "mary ann", True),
        ("Mary Ann", "MARY ANN", True),
        ("Mary Ann", "so mary ann", True),
        ("Mary Ann", "Mary\u00a0Ann", True),
        ("Mary Ann", "ann", False),
        ("Zoey", "Clearly Zoey", True),
        ("Zoey", "the islander Zoey", True),
        ("Person 1", "Person 2", False),
        ("李", "李", True),
    ],
)
def test_a_name_is_recognised_in_every_spelling_and_no_part_of_it(gold, said, right):
    assert judged(f"(1) {gold} is a knight", f"{said} is a knight") == (right, right)


@pytest.mark.parametrize("name", ["_", "*", "Zoey ", "a" + "_" * 9, "Zoey is ", "Zoey : "])
def test_a_long_answer_costs_linear_time(name):
    text = f"<think>x</think><answer>{name * 20_000}x{' ' * 50_000}</answer>"
    begun = time.monotonic()
    for faithful in (False, True):
        assert logic_rl(["p"], [text], answer=[ANSWER], faithful=faithful) == [-1.0]
    assert knights_and_knaves([text], answer=[ANSWER]) == [0.0]
    assert time.monotonic() - begun < 2


@given(
    st.lists(
        st.sampled_from(["Zoey", "sam", " ", "\n", "is a", "knight", "Knave", "knights", "not", "x", ":"])
    )
)
@settings(max_examples=300, deadline=None)
def test_faithful_logic_rl_equals_the_published_search(parts):
    said = "".join(parts)
    found = [re.search(rf"\b{name}\b.*?\b(knight|knave)\b", said, re.IGNORECASE) for name in ("Zoey", "Sam")]
    kinds = [match and match[1].lower() for match in found]
    wanted = -1.0 if None in kinds else 3.0 if kinds == ["knight", "knave"] else -0.5
    text = f"<think>x</think><answer>{said}</answer>"
    assert logic_rl(["p"], [text], answer=[ANSWER], faithful=True) == [wanted]


def test_the_recipe_logic_rl_also_penalises_mixed_languages():
    assert load_settings(GRPOConfig, "logic-rl").rewards == ["logic_rl", "language_mixing"]


def test_a_thought_that_the_prompt_opened_counts():
    text = RIGHT.removeprefix("<think>")
    assert scores(text)[0] == -3
    assert scores(text, "Assistant: <think>\n")[0] == 3
    assert (
        scores(text, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>"}])[0] == 3
    )


@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "Zoey is a knight", "Sam is a knave", "\n", "x"]
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_every_text_scores_one_of_the_four_totals(parts):
    logic, right = scores("".join(parts))
    assert logic in (3, -0.5, -1, -3)
    assert right in (0, 1)
    assert (logic == 3) <= (right == 1)


@pytest.mark.parametrize("said", ["", "<answer></answer>", RIGHT])
def test_a_gold_that_names_nobody_is_an_error(said):
    with pytest.raises(ValueError, match="says of nobody"):
        knights_and_knaves([said], answer=["unknown"])
    with pytest.raises(ValueError, match="says of nobody"):
        logic_rl(["p"], [said], answer=["unknown"])


def test_the_answer_of_every_generated_puzzle_is_correct():
    rows = load_rows("knights_and_knaves:people=3-5,size=50", "train")
    said = [f"<think>t</think><answer>{row['answer']}</answer>" for row in rows]
    answers = [row["answer"] for row in rows]
    assert knights_and_knaves(said, answer=answers) == [1.0] * 50
    assert logic_rl([row["prompt"] for row in rows], said, answer=answers) == [3.0] * 50
    assert sum(knights_and_knaves(said[1:] + said[:1], answer=answers)) < 5
