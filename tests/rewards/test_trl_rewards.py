r"""TRL's rewards under TRL's names give TRL's values."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import grpo_jax.rewards as ours
from grpo_jax.rewards import RewardPool

NAMES = [
    "accuracy_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "reasoning_accuracy_reward",
    "think_format_reward",
]

# Completion, solution, score.
ANSWERS = [
    (r"The answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}", 1),
    (r"The answer is \boxed{\frac{1}{2}}", r"\frac{1}{3}", 0),
    (r"\boxed{0.5}", r"$\frac{1}{2}$", 1),
    (r"The answer is $7$.", "7", 1),
    (r"$7$", "7", 0),  # nothing says that this is the answer
    (r"The answer is $3$, no, \boxed{4}", "4", 1),  # boxed comes first
    ("4", "4", 0),  # plain text is no answer
    ("", "4", 0),
    (r"\boxed{}", "4", 0),
    (r"\boxed{1,080}", "1080", 1),
    (r"\boxed{-7}", "7", 0),
    (r"\boxed{(-\infty, 2]}", r"$(-\infty, 2]$", 1),
    (r"\boxed{2 < x < 5}", r"$(2,5)$", None),  # as TRL scores it: the order of the arguments matters
    (r"\boxed{(2,5)}", r"$2 < x < 5$", None),
    (r"\boxed{x = 5}", r"$5$", None),
    (r"\boxed{5}", r"$x = 5$", None),
    (r"\boxed{\frac43}", r"$\frac{4}{3}$", 0),  # a weakness that is TRL's
    (r"\boxed{10\text{ cm}}", "10", 1),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"$\begin{pmatrix}1\\2\end{pmatrix}$", 1),
    (r"\boxed{\text{blue}}", r"$\text{blue}$", None),
]
UNREADABLE = (r"\boxed{4}", "nobody knows")


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("trl.rewards")


def messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


class Table(dict):
    """A `log_extra` that keeps the columns that it is given."""

    def __call__(self, column, values):
        self[column] = values


@pytest.mark.parametrize("name", NAMES)
def test_rewards_can_be_imported_under_trls_names(theirs, name):
    assert name in ours.__all__
    assert callable(getattr(ours, name))
    assert hasattr(theirs, name)


def test_accuracy_agrees_with_trl(theirs):
    texts, solutions, expected = zip(*ANSWERS, (*UNREADABLE, None))
    here, there = Table(), Table()
    got = ours.accuracy_reward(messages(texts), list(solutions), log_extra=here)
    assert got == theirs.accuracy_reward(messages(texts), list(solutions), log_extra=there)
    assert here == there
    assert got[-1] is None
    for text, want, score in zip(texts, expected, got):
        assert want in (None, score), text


def test_plain_texts_score_as_messages_do():
    texts, solutions, _ = zip(*ANSWERS[:4])
    assert ours.accuracy_reward(list(texts), solutions) == ours.accuracy_reward(messages(texts), solutions)


REASONED = [
    (r"<think> hm </think> \boxed{4}", "4"),
    (r"<think> \boxed{4} </think> \boxed{5}", "4"),
    (r"<think> \boxed{4} and no end", "4"),
    (r"a </think> \boxed{5} </think> \boxed{4}", "4"),
    (r"a </b> \boxed{4} </a> \boxed{5} </b> \boxed{6}", "5"),
    ("never ends", "nobody knows"),
    (r"</think> \boxed{4}", "nobody knows"),
]


@pytest.mark.parametrize("delimiters", [None, ["</a>", "</b>", "</think>"], ["</b>", "</a>"], []])
def test_accuracy_after_the_reasoning_agrees_with_trl(theirs, delimiters):
    texts, solutions = zip(*REASONED)
    here, there = Table(), Table()
    arguments = (messages(texts), list(solutions), delimiters)
    got = ours.reasoning_accuracy_reward(*arguments, log_extra=here)
    assert got == theirs.reasoning_accuracy_reward(*arguments, log_extra=there)
    assert here == there
    if delimiters is None:
        assert got == [1, 0, 0, 1, 0, 0, None]


def test_think_format_agrees_with_trl(theirs):
    texts = [
        "<think>\na\n</think>\nb",
        "<think>\na\nb",
        "<think></think>",
        " <think>a</think>b",
        "a\n<think>b</think>",
        "<think>a</think>b</think>c",
        "<think>a<think>b</think>",
        "<think>a</think><think>b</think>",
        "</think><think>",
        "<think>a</think>\n\n<answer>1</answer>\n<|im_end|>",
        "",
    ]
    got = ours.think_format_reward(messages(texts))
    assert got == theirs.think_format_reward(messages(texts))
    assert sum(got) == 4
    assert ours.think_format_reward(prompts=texts, completions=texts) == got


@pytest.mark.parametrize("limits", [(10, 4), (10, 0), (10, 10), (10, 15), (3, 1)])
def test_soft_overlong_agrees_with_trl(theirs, limits):
    ids = [[1] * n for n in range(14)]
    expected = theirs.get_soft_overlong_punishment(*limits)(completion_ids=ids)
    assert ours.get_soft_overlong_punishment(*limits)(completion_ids=ids) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize(("n", "penalty"), [(1, -1.0), (2, -1.0), (3, -0.5), (3, 0.0)])
def test_repetition_agrees_with_trl(theirs, n, penalty):
    ids = [[], [1], [1, 2, 3, 4], [5] * 5, [1, 2] * 6, list(range(9)) + [1, 2, 3]]
    expected = theirs.get_repetition_penalty_reward(n, penalty)(ids)
    assert ours.get_repetition_penalty_reward(n, penalty)(ids) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bounds", [(), (-2.0, -0.25, 0.1, 3.0)])
def test_cosine_agrees_with_trl_and_is_flat_beyond_the_maximum(theirs, bounds):
    lengths = [0, 1, 50, 99, 100, 150, 200]
    texts = messages([r"\boxed{4}"] * 7 + [r"\boxed{5}"] * 7 + [r"\boxed{4}"])
    solutions = ["4"] * 14 + ["nobody knows"]
    ids = [[1] * n for n in [*lengths, *lengths, 3]]
    got = ours.get_cosine_scaled_reward(100, *bounds)(texts, solutions, ids)
    expected = theirs.get_cosine_scaled_reward(100, *bounds)(texts, solutions, ids)
    assert got[:-1] == pytest.approx(expected[:-1], abs=1e-12)
    assert got[-1] is expected[-1] is None
    assert got[4] == got[5] == got[6]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: ours.get_repetition_penalty_reward(max_penalty=0.5),
        lambda: ours.get_repetition_penalty_reward(ngram_size=0),
        lambda: ours.get_cosine_scaled_reward(0),
    ],
)
def test_invalid_arguments_are_refused(mistake):
    with pytest.raises(ValueError, match="= 0"):
        mistake()


def test_factories_give_picklable_functions_with_trls_names(theirs):
    for name, arguments in [(NAMES[1], (100,)), (NAMES[2], ()), (NAMES[3], (10, 4))]:
        made = getattr(ours, name)(*arguments)
        assert pickle.loads(pickle.dumps(made)) == made
        assert made.__name__ == getattr(theirs, name)(*arguments).__name__


def test_all_of_trls_rewards_run_in_worker_processes():
    rewards = [
        "accuracy_reward",
        "think_format_reward",
        ours.get_cosine_scaled_reward(4),
        ours.get_repetition_penalty_reward(),
        ours.get_soft_overlong_punishment(4, 2),
    ]
    texts = [r"<think>hm</think> \boxed{4}", r"\boxed{5}"]
    with RewardPool(rewards, workers=1) as pool:
        got = pool.score(["a", "a"], texts, {"solution": ["4", "4"]}, [[1, 2, 3], [1] * 5])
        assert not pool._worker_pool.local
        assert pool.messages["accuracy_reward"] == {}
    half = 0.5 + 0.25 * (1 + np.cos(np.pi * 0.75))
    np.testing.assert_allclose(got.values, [[1, 1, half, 0, -0.5], [0, 0, -0.5, -2 / 3, -1]])
    assert got.extras["answer_parsed"][0].startswith("[4")


def test_accuracy_works_on_any_thread():
    """math-verify's own time limits need signals, which only a main thread gets."""
    got = []
    thread = threading.Thread(target=lambda: got.extend(ours.accuracy_reward([r"\boxed{4}"], ["4"])))
    thread.start()
    thread.join()
    assert got == [1.0]


def test_an_endless_formula_scores_zero_and_other_rows_are_scored():
    with RewardPool(["accuracy_reward"], workers=1, timeout=1.5) as pool:
        pool.score(["a"], [r"\boxed{4}"], {"solution": ["4"]})
        texts = [r"\boxed{4}", r"\boxed{(\alpha+\beta)^{9999}}"]
        got = pool.score(["a", "a"], texts, {"solution": ["4", "4"]})
    np.testing.assert_array_equal(got.values[:, 0], [1, 0])
    assert got.timeouts == {"accuracy_reward": 1}


def test_importing_rewards_loads_neither_numpy_nor_sympy():
    code = "import sys, grpo_jax.rewards as r; assert 'accuracy_reward' in r.BUILTIN; "
    code += "r.think_format_reward, r.get_soft_overlong_punishment; assert not {'sympy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
