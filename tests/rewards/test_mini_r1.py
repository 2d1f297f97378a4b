"""Mini-R1's two rewards on the published cases, and TinyZero's on the same."""

import pytest

from grpo_jax.rewards import load_reward

NUMBERS, TARGET = [19, 36, 55, 7], 65
RIGHT = "55 + 36 - 7 - 19"

# The kinds of case that the write-up publishes, in our words; the prompt has opened the thought.
GOLDEN = [
    (f"36 and 55 make 91, minus 26.</think>\n<answer> {RIGHT} </answer>", 1, 1, 1),
    ("Another order.</think>\n<answer>(55 - 19) + 36 - 7</answer>", 1, 1, 1),
    (f"{RIGHT} = 65, found without a tag", 0, 0, 0),
    (f"a</think><think>b</think><think>c</think> {RIGHT} = 65", 0, 0, 0),
    ("18 instead of 19.</think>\n<answer>55 + 36 - 7 - 18</answer>", 1, 0, 0.1),
]

# Text, then corrected and faithful for format, equation and tinyzero.
FAULTS = [
    (f"a</think>\n<answer>{RIGHT}</answer><|im_end|>", (1, 0), (1, 1), (1, 1)),
    (f"a</think>\n\n<answer>{RIGHT}</answer>", (1, 0), (1, 1), (1, 1)),
    (f"<think>a</think>\n<answer>{RIGHT}</answer>", (1, 0), (1, 1), (1, 1)),
    ("a</think>\n<answer></answer>", (0, 1), (0, 0), (0, 0.1)),
    (f"</think>\n<answer>{RIGHT}</answer>", (0, 1), (1, 1), (1, 1)),
    (f"a</think>\n<answer>1</answer>\n<answer>{RIGHT}</answer>", (0, 1), (1, 0), (1, 1)),
    (f"a</think>\n<answer>{RIGHT}</answer>\n<answer>1</answer>", (0, 1), (0, 1), (0.1, 0.1)),
    (f"a</think>\n<answer>\n{RIGHT}\n</answer>", (1, 1), (1, 0), (1, 0)),
    (f"a</think>\n<answer>{RIGHT}</answer>\nSo it is.", (0, 0), (1, 1), (1, 0)),
    (f"a</think>\n<answer>{RIGHT} = 65</answer>", (1, 1), (1, 0), (1, 0.1)),
]


def scores(text, mode=""):
    row = {"prompts": ["q"], "completions": [text], "numbers": [NUMBERS], "target": [TARGET]}
    names = ("mini_r1_format", "mini_r1_equation", "tinyzero")
    return [load_reward(name + mode).function(**row)[0] for name in names]


@pytest.mark.parametrize("mode", ["", ":faithful=true"])
@pytest.mark.parametrize(("text", "formed", "equation", "tiny"), GOLDEN)
def test_the_published_cases_score_as_published(text, formed, equation, tiny, mode):
    assert scores(text, mode) == [formed, equation, tiny]


@pytest.mark.parametrize(("text", "formed", "equation", "tiny"), FAULTS)
def test_known_faults_are_corrected_and_faithful_keeps_them(text, formed, equation, tiny):
    assert [*zip(scores(text), scores(text, ":faithful=true"))] == [formed, equation, tiny]


def test_a_nearly_exact_result_is_correct_only_if_faithful():
    row = {"prompts": ["q"], "completions": ["<answer>1000001/1000000</answer>"]}
    row |= {"nums": [[1000001, 1000000]], "target": [1]}
    for name, wrong in (("mini_r1_equation", 0.0), ("tinyzero", 0.1)):
        assert load_reward(name).function(**row) == [wrong]
        assert load_reward(f"{name}:faithful=true").function(**row) == [1.0]


@pytest.mark.parametrize("name", ["mini_r1_equation", "tinyzero"])
def test_a_missing_column_of_numbers_is_named(name):
    with pytest.raises(ValueError, match=f"{name} needs a column 'numbers'"):
        load_reward(name).function(prompts=["q"], completions=["x"], target=[1])
