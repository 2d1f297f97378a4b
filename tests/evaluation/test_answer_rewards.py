"""Strict and flexible scoring: the reward functions score the answer that they find, and log it."""

import inspect
import pickle

import pytest

from grpo_jax.evaluation.answer_rewards import AnswerReward
from grpo_jax.rewards import RewardPool

ASK = [{"role": "user", "content": "?"}]
OPENED = [*ASK, {"role": "assistant", "content": "Well. <think>\n"}]


def reply(text):
    return [{"role": "assistant", "content": text}]


def both(answer, place, judge=None):
    return [AnswerReward(scoring, answer, place, judge) for scoring in ("strict", "flexible")]


@pytest.fixture(scope="module")
def scores():
    """`scores(graders, texts, prompt, **columns)`: the pool's scores of completions of one prompt."""

    def score(graders, texts, prompt=ASK, **columns):
        with RewardPool(graders, workers=1) as pool:
            rows = {name: [value] * len(texts) for name, value in columns.items()}
            return pool.score([prompt] * len(texts), [reply(text) for text in texts], rows)

    return score


def test_strict_never_scores_more_than_flexible(scores):
    texts = ["#### 18", "It is 18.", "#### 17", ""]
    found = scores(both("number", "hash"), texts, answer="18")
    assert found.values.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert found.extras["strict/answer"] == ["18", None, "17", None]
    assert found.extras["flexible/vote"] == ["18", "18", "17", None]


def test_equal_formulas_share_a_vote(scores):
    texts = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{2}", r"\boxed{\dfrac12}"]
    found = scores(both("math", "box"), texts, answer=r"\frac{2}{4}")
    assert found.values[:, 0].tolist() == [1, 1, 0, 1]
    votes = found.extras["strict/vote"]
    assert votes[0] == votes[1] == votes[3] != votes[2]


def test_a_judge_sees_only_the_answer(scores):
    """Countdown's own reward scores an expression that stood outside of every tag."""
    texts = ["<think>9+5</think><answer>9+3-5</answer>", "so 9 + 3 - 5", "<think><answer>9+3-5</answer>"]
    found = scores(both("expression", "tag", "countdown"), texts, numbers=[3, 5, 9], target=7)
    assert found.values.tolist() == [[1, 1], [0, 1], [0, 1]]


def test_thinking_that_the_prompt_opens_holds_no_answer(scores):
    texts = [r"\boxed{2}", r"\boxed{3}</think> \boxed{2}"]
    found = scores(both("number", "box"), texts, OPENED, answer="2")
    assert found.values.tolist() == [[0, 1], [1, 1]]


def test_an_endless_formula_leaves_the_other_rows_scored():
    tower = r"\boxed{9^{9^{9^{9^{9}}}}+x}"
    with RewardPool(both("math", "box"), workers=1, timeout=3) as pool:
        found = pool.score([ASK] * 2, [reply(tower), reply(r"\boxed{x+1}")], {"answer": ["1+x"] * 2})
    assert found.values[1].tolist() == [1, 1]
    assert 1 not in found.values[0].tolist()


def test_columns_of_the_judge_are_required():
    ask = lambda grader: set(inspect.signature(grader).parameters) - {"prompts", "completions", "columns"}
    assert [ask(grader) for grader in both("number", "hash")] == [{"answer"}] * 2
    assert ask(both("expression", "tag", "countdown")[0]) == {"target"}


def test_a_users_judge_reaches_the_workers(scores, tmp_path):
    (tmp_path / "mine.py").write_text(
        "async def long(completions, **columns):\n"
        "    return [float(len(c[0]['content']) > 30) for c in completions]\n"
    )
    grader = AnswerReward("strict", "text", "tag", f"{tmp_path / 'mine.py'}:long")
    assert len(inspect.signature(grader).parameters) == 3
    assert pickle.loads(pickle.dumps(grader)) == grader
    found = scores([grader], ["<answer>a</answer>", "<answer>a longer answer</answer>", "neither"])
    assert found.values[:, 0].tolist() == [0, 1, 0]


def test_programs_are_judged_by_the_code_reward(scores):
    """By the sandbox, with a row's tests in the columns of LiveCodeBench."""
    tests = '[{"input": "2 3", "output": "5", "testtype": "stdin"}]'
    program = "a, b = map(int, input().split())\nprint(a {} b)"
    texts = [f"```python\n{program.format(sign)}\n```" for sign in "+*"] + [program.format("+")]
    found = scores(both("code", "fence", "code:sandbox=local"), texts, public_test_cases=tests)
    assert found.values.tolist() == [[1, 1], [0, 0], [0, 1]]
