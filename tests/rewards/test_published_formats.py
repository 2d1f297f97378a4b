"""Published format rewards: the corrected rule by default, and the published one, with its faults, if faithful."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rewards import load_reward

LINES = "<think>\na\n</think>\n<answer>\nb\n</answer>"
PLAIN = "<think>a</think>\n<answer>b</answer>"
OPENED = "Assistant: <think>\n"
CODE = "<think>\nhm\n</think>\n<answer>\n```python\nprint(1)\n```\n</answer>"


def score(spec, text, prompt="q"):
    plain, chat = load_reward(spec).function(
        prompts=[prompt] * 2, completions=[text, [{"role": "assistant", "content": text}]]
    )
    assert plain == chat
    return plain


@pytest.mark.parametrize(
    ("text", "corrected", "faithful"),
    [
        (LINES, 1, 1),
        (LINES + "<|im_end|>", 1, 0),
        (LINES + "\n<|im_end|>\n", 1, 1),
        (LINES.replace("<answer>", "\n<answer>"), 1, 0),  # a blank line
        (PLAIN, 0, 0),  # not on lines of their own
        ("<think>\n\n</think>\n<answer>\n\n</answer>", 0, 1),  # empty
        (LINES + "\n<answer>\nc\n</answer>", 0, 1),  # a second answer
        (LINES + "\nand more", 0, 1),
        ("Well. " + LINES, 0, 0),
        (LINES.replace("</think>", "</think> so"), 0, 0),
        ("<answer>\nb\n</answer>\n<think>\na\n</think>", 0, 0),
        ("", 0, 0),
    ],
)
def test_open_r1_format_requires_each_tag_on_a_line_of_its_own(text, corrected, faithful):
    assert score("open_r1_format", text) == corrected
    assert score("open_r1_format:faithful=true", text) == faithful


def test_a_thought_that_the_prompt_opened_counts_unless_faithful():
    text = LINES.removeprefix("<think>\n")
    assert score("open_r1_format", text, OPENED) == 1
    assert score("open_r1_format:faithful=true", text, OPENED) == 0
    assert score("tag_count", text, OPENED) == 1
    assert score("tag_count:faithful=true", text, OPENED) == 0.75
    assert score("simple_grpo_format", text, OPENED) == 1.25
    assert score("simple_grpo_format:faithful=true", text, OPENED) == -1
    assert score("logic_rl_format", text, OPENED) == score("soft_format", text, OPENED) == 1
    assert score("logic_rl_format", text) == -1
    assert score("soft_format", text) == 0


@pytest.mark.parametrize(
    ("text", "corrected", "faithful"),
    [
        (LINES, 1, 1),
        (PLAIN, 1, 0),
        ("<think>\na\n</think>\n", 0.5, 0.5),
        ("<answer><answer>", 0, 0),
        (LINES + "<answer>", 0.75, 1),  # `\n<answer>\n` still stands once
        ("", 0, 0),
    ],
)
def test_tag_count_gives_a_quarter_for_each_tag_that_appears_once(text, corrected, faithful):
    assert score("tag_count", text) == corrected
    assert score("tag_count:faithful=true", text) == faithful


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, 1),
        ("x <think></think> y <answer></answer> z", 1),
        (PLAIN + "<answer>", -1),
        ("<answer>b</answer><think>a</think>", -1),
        ("<think>a<answer>b</think></answer>", -1),
        ("", -1),
    ],
)
def test_logic_rl_format_requires_every_tag_once_and_in_order(text, expected):
    assert score("logic_rl_format", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, 1),
        ("Well. " + PLAIN + " So b. " + PLAIN, 1),
        ("<think>a</think> hm <answer>b</answer>", 1),
        ("<think></think><answer>b</answer>", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think>b", 0),
    ],
)
def test_soft_format_allows_text_around_two_filled_blocks(text, expected):
    assert score("soft_format", text) == expected
    other = text.replace("think>", "reasoning>").replace("answer>", "result>")
    assert score("soft_format:think=reasoning,answer=result", other) == expected
    assert score("soft_format", other) == 0


@pytest.mark.parametrize(
    ("text", "corrected", "faithful"),
    [
        (PLAIN, 1.25, 1.25),
        ("<think></think><answer></answer>", -1, 1.25),
        (PLAIN + "<|im_end|>", 1.25, -1),
        ("<think>a</think>\t<answer>b</answer>", 1.25, -1),
        (PLAIN + "<answer>c</answer>", -1, -1),
        (PLAIN + "\n", 1.25, 1.25),
        (PLAIN + "\n\n", 1.25, -1),
        ("<think>a<think><answer>b</answer>", -1, -1),
        ("", -1, -1),
    ],
)
def test_simple_grpo_format_requires_two_filled_blocks_and_nothing_else(text, corrected, faithful):
    assert score("simple_grpo_format", text) == corrected
    assert score("simple_grpo_format:faithful=true", text) == faithful


@pytest.mark.parametrize(
    ("text", "total"),
    [(PLAIN.replace("b", "18"), 2.25), (PLAIN.replace("b", "19"), 0.25), ("18", 0), ("19", -2)],
)
def test_simple_grpos_rewards_add_up_to_four_totals(text, total):
    correct = load_reward("simple_grpo_correct").function(completions=[text], answer=["18"])[0]
    assert correct + score("simple_grpo_format", text) == total


@pytest.mark.parametrize(
    ("text", "corrected", "faithful"),
    [
        (CODE, 1, 1),
        (CODE.replace("python", "cpp"), 0, 0),
        (CODE.replace("python", "Python title=x"), 1, 0),
        (CODE.replace("print(1)", ""), 0, 1),
        (CODE.replace("```\n</answer>", "</answer>"), 0, 0),
        ("<think>```python\n1\n```</think> none", 0, 0),  # only a thought
        ("So:\n```python\n1\n```\n", 1, 0),
        ("```python\n```\n```python\n1\n```", 1, 0),
        ("```\n```python\n1\n", 0, 0),
        ("", 0, 0),
    ],
)
def test_code_format_requires_a_closed_and_filled_block(text, corrected, faithful):
    assert score("code_format", text) == corrected
    assert score("code_format:faithful=true", text) == faithful


def test_code_format_accepts_another_language_by_option():
    assert score("code_format:language=cpp", CODE.replace("python", "CPP")) == 1


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "a", "```python", "```", "<|im_end|>"]
TEXTS = st.lists(st.sampled_from([*PIECES, "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"])).map(
    "".join
)
EVERYTHING = re.DOTALL | re.MULTILINE
ORACLES = {
    "open_r1_format": lambda text: float(
        bool(re.match(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", text, EVERYTHING))
    ),
    "code_format": lambda text: float(
        bool(
            re.match(r"<think>\n.*?\n</think>\n<answer>\n.*?```python.*?```.*?\n</answer>$", text, EVERYTHING)
        )
    ),
    "simple_grpo_format": lambda text: (
        1.25
        if re.match(r"<think>.*?</think>[\n ]*<answer>.*?</answer>$", text, re.DOTALL)
        and len(re.findall("</?think>", text)) == len(re.findall("</?answer>", text)) == 2
        else -1.0
    ),
    "mini_r1_format": lambda text: float(
        bool(re.match(r"(?:(?!</?think>).)*</think>\n<answer>.*?</answer>$", text, re.DOTALL))
    ),
}


@pytest.mark.parametrize("name", ORACLES)
@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_faithful_rules_equal_the_published_regular_expressions(name, text):
    wrapped = "<think>\n" + text + "\n</answer>", "a</think>\n<answer>" + text + "</answer>"
    for whole in (text, *wrapped, *[one + "\n" for one in wrapped]):
        assert score(f"{name}:faithful=true", whole) == ORACLES[name](whole)


HOSTILE = [*PIECES, "\n</think>\n<answer>\n", "</think>\n<answer>", "\n```python\n", "Step 1:\n- 1. \n"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_repetition_costs_linear_time(piece):
    text = "<think>\n" + piece * (400_000 // len(piece))
    start = time.perf_counter()
    for name in [*ORACLES, "tag_count", "reasoning_steps"]:
        for spec in (name, f"{name}:faithful=true"):
            load_reward(spec).function(prompts=["q"], completions=[text])
    score("logic_rl_format", text)
    score("soft_format", text)
    assert time.perf_counter() - start < 5.0  # a quadratic rule needs minutes
