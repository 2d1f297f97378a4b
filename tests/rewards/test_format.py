"""The format reward against what regular-expression graders let through or wrongly refuse."""

import time

import pytest

from grpo_jax.rewards.functions.format import TAGS, think_answer_format

GOOD = "<think>a</think>\n<answer>b</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, 1.0),
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n <think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),  # a blank line between is fine
        (GOOD + "<|im_end|>", 1.0),
        (GOOD + "<|im_end|>\n<|endoftext|>", 1.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think> \n</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>\u200b</think><answer>b</answer>", 0.0),  # nothing that can be seen
        ("<think>a</think><answer>\u200d\u2060</answer>", 0.0),
        (GOOD + "<answer>c</answer>", 0.0),
        ("<think>x</think>" + GOOD, 0.0),
        ("<think><think>a</think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("Well. " + GOOD, 0.0),
        (GOOD + " done", 0.0),
        ("<|im_end|>" + GOOD, 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("a</think><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_the_format_is_one_thought_then_one_answer_and_nothing_else(text, expected):
    chat = [{"role": "assistant", "content": text}]
    assert think_answer_format(["q", [{"role": "user", "content": "q"}]], [text, chat]) == [expected] * 2


@pytest.mark.parametrize(
    "prompt",
    [
        "Solve it.\n<think>\n",
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Let me see.\n<think>"}],
    ],
)
def test_a_prefilled_opening_tag_may_be_left_out(prompt):
    texts = ["a</think>\n<answer>b</answer>", GOOD, "</think><answer>b</answer>", "x<think>" + GOOD]
    assert think_answer_format([prompt] * 4, texts) == [1.0, 1.0, 0.0, 0.0]


def test_a_think_tag_inside_the_question_is_no_prefill():
    prompts = ["Write <think> first.", [{"role": "user", "content": "end with <think>"}]]
    assert think_answer_format(prompts, ["a</think><answer>b</answer>"] * 2) == [0.0, 0.0]


@pytest.mark.parametrize("piece", [*TAGS, "<|im_end|>", " ", GOOD])
def test_hostile_repetition_costs_linear_time(piece):
    start = time.perf_counter()
    think_answer_format(["q"], [piece * (400_000 // len(piece))])
    assert time.perf_counter() - start < 3.0
