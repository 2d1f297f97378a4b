"""Knights and knaves: who is told right, and Logic-RL's four totals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.sources import load_rows
from grpo_jax.rewards.knights import knights_and_knaves, logic_rl

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
        (f"<think>x</think><answer>{ANSWER}, Bob is a knave</answer>", -1, 0),  # one too many
        (f"<think>x</think><answer>{ANSWER}, Zoey is a knave</answer>", -1, 0),  # both
        ("<think>x</think><answer>Zoey is not a knave, Sam is a knave</answer>", -1, 0),
        ("<think>x</think><answer></answer>", -1, 0),
        (f"<answer>{ANSWER}</answer>", -3, 1),  # no thought: told right, in the wrong form
        (f"</think><think><answer>{ANSWER}</answer>", -3, 1),
        (RIGHT + RIGHT, -3, 1),
        (f"<think>x</think>{ANSWER}", -3, 0),
        ("", -3, 0),
    ],
)
def test_another_score(text, logic, right):
    assert scores(text) == (logic, right)


def test_a_thought_that_the_prompt_opened_is_missed():
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
def test_no_text_scores_anything_else(parts):
    logic, right = scores("".join(parts))
    assert logic in (3, -0.5, -1, -3)
    assert right in (0, 1)
    assert (logic == 3) <= (right == 1)


@pytest.mark.parametrize("said", ["", "<answer></answer>", RIGHT])
def test_a_gold_that_names_nobody_is_met(said):
    with pytest.raises(ValueError, match="says of nobody"):
        knights_and_knaves([said], answer=["unknown"])
    with pytest.raises(ValueError, match="says of nobody"):
        logic_rl(["p"], [said], answer=["unknown"])


def test_a_puzzle_of_ours_cannot_be_answered():
    rows = load_rows("knights_and_knaves:people=3-5,size=50", "train")
    said = [f"<think>t</think><answer>{row['answer']}</answer>" for row in rows]
    answers = [row["answer"] for row in rows]
    assert knights_and_knaves(said, answer=answers) == [1.0] * 50
    assert logic_rl([row["prompt"] for row in rows], said, answer=answers) == [3.0] * 50
    assert sum(knights_and_knaves(said[1:] + said[:1], answer=answers)) < 5
