"""What rewards log arrives whole, in row order, once; an invalid log is an error like any other."""

import re
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from grpo_jax.rewards import RewardPool

NAN = np.nan
FUNCTIONS = """
import fractions, os
import numpy as np

def lengths(prompts, completions, log_extra, log_metric, **columns):
    log_extra("length", [len(c) for c in completions])
    log_metric("mean_length", np.float32(sum(map(len, completions)) / len(completions)))
    if "raise" in completions:
        raise RuntimeError("boom")
    if "exit" in completions:
        os._exit(1)
    return [1.0] * len(completions)

def row_by_row(completions, log_extra, log_metric):
    for i, completion in enumerate(completions):
        log_extra("place", [i])
        if completion != "quiet":
            log_metric("letters", len(completion))
    return [None if c == "none" else 2.0 for c in completions]

def odd(completions, log_extra, log_metric):
    log_extra("array", np.arange(len(completions)))
    log_extra("nested", [np.ones(2), (1, None)][: len(completions)])
    log_extra("other", [fractions.Fraction(1, 2), {"a": 1}][: len(completions)])
    for value in (float("nan"), float("inf"), True, 3):
        log_metric("odd", value)
    log_metric("nothing", float("nan"))
    return [0.0] * len(completions)

def also_lengths(completions, log_extra, log_metric):
    log_extra("length", ["long"] * len(completions))
    log_metric("mean_length", 10)
    return [0.0] * len(completions)

def too_few(completions, log_extra):
    log_extra("note", ["only one"])
    return [1.0] * len(completions)

def a_word(completions, log_metric):
    log_metric("share", "many")
    return [1.0] * len(completions)

def a_text(completions, log_extra):
    log_extra("note", "ab")
    return [1.0] * len(completions)

def tuple_keys(completions, log_extra):
    log_extra("note", [{(1, 2): 3} for _ in completions])
    return [1.0] * len(completions)

def step_of(prompts, completions, trainer_state, **columns):
    return [float(trainer_state.global_step)] * len(completions)

def step_in_kwargs(completions, **columns):
    state = columns["trainer_state"]
    return [-1.0 if state is None else state.global_step for _ in completions]

def changes_state(completions, trainer_state):
    trainer_state.global_step += 1
    return [trainer_state.global_step] * len(completions)
"""


@dataclass
class State:
    global_step: int = 0
    log_history: list = field(default_factory=list)


class Unpicklable:
    """A trainer state that cannot be unpickled."""

    def __reduce__(self):
        return (exec, ("raise ImportError('no such state there')",))


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("logging_rewards") / "logging_rewards.py"
    path.write_text(FUNCTIONS)
    return lambda *names: [f"{path}:{name}" for name in names]


def score(pool, groups, **rest):
    prompts = [f"p{i}" for i, group in enumerate(groups) for _ in group]
    return pool.score(prompts, [word for group in groups for word in group], **rest)


def test_logs_of_all_groups_and_functions_come_together_in_row_order(functions):
    with RewardPool(functions("lengths", "row_by_row"), workers=2) as pool:
        got = score(pool, [["a", "bb"], ["quiet"], ["dddd", "none"]])
        assert got.extras == {"length": [1, 2, 5, 4, 4], "place": [0, 1, 0, 0, 1]}
        assert got.metrics == pytest.approx(
            {"mean_length": (1.5 + 5 + 4) / 3, "letters": (1 + 2 + 4 + 4) / 4}
        )
        again = score(pool, [["a"]])
        assert again.extras == {"length": [1], "place": [0]}, "logs of the step before are left over"


@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_a_retried_group_leaves_no_doubled_and_no_half_logs(functions, fault):
    with RewardPool(functions("lengths"), workers=1) as pool:
        got = score(pool, [["a", fault, "ccc"], ["dd"]])
    np.testing.assert_array_equal(got.values[:, 0], [1, NAN, 1, 1])
    assert got.extras == {"length": [1, None, 3, 2]}
    assert got.metrics == {"mean_length": 2.0}  # of 1, 3 and 2: the rows that were scored, each once


def test_logged_values_become_json_and_metrics_skip_non_finite_numbers(functions):
    with RewardPool(functions("odd"), workers=1) as pool:
        got = score(pool, [["a", "b"]])
    assert got.extras == {
        "array": [0, 1],
        "nested": [[1.0, 1.0], [1, None]],
        "other": ["1/2", {"a": 1}],
    }
    assert got.metrics == {"odd": 2.0}


def test_equal_columns_of_two_functions_stay_apart_and_metrics_are_averaged(functions):
    with RewardPool(functions("lengths", "also_lengths"), workers=1) as pool:
        got = score(pool, [["a", "bbb"]])
    assert got.extras == {"lengths/length": [1, 3], "also_lengths/length": ["long", "long"]}
    assert got.metrics == {"mean_length": 6.0}


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("too_few", 0, r"log_extra\('note', ...\) was given 1 values for 2 completions"),
        (
            "a_word",
            2,
            r"log_metric\('share', ...\) takes a number, not str 'many' \(logging_rewards.py, line",
        ),
        ("a_text", 2, r"log_extra\('note', ...\) takes a list, one value per row; not str 'ab'"),
        ("tuple_keys", 2, "keys must be str"),
    ],
)
def test_an_invalid_log_is_an_error_of_its_function(functions, name, lost, message):
    with RewardPool(functions(name, "row_by_row"), workers=1) as pool:
        got = score(pool, [["a", "b"]])
        assert re.search(message, pool.messages[name]["errors"])
    assert got.errors == {name: lost, "row_by_row": 0}  # too_few is right for single rows
    assert got.extras["place"] == [0, 1]
    assert got.values[:, 1].tolist() == [2, 2]


def test_functions_that_run_in_the_trainer_log_too():
    lock = threading.Lock()

    def here(completions, log_extra, log_metric, trainer_state):
        with lock:
            log_extra("seen", list(completions))
        log_metric("step", trainer_state.global_step)
        return [1.0] * len(completions)

    with RewardPool([here], workers=1) as pool, pytest.warns(UserWarning, match="'here' cannot be sent"):
        got = score(pool, [["a"], ["b"]], trainer_state=State(4))
    assert (got.extras, got.metrics) == ({"seen": ["a", "b"]}, {"step": 4.0})


def test_the_state_of_each_step_reaches_every_worker(functions):
    with RewardPool(functions("step_of", "step_in_kwargs"), workers=2) as pool:
        for step in (3, 4, 4, 5):
            got = score(pool, [["a"], ["b"], ["c"]], trainer_state=State(step))
            np.testing.assert_array_equal(got.values, np.full((3, 2), step))


def test_trainer_state_is_none_when_a_call_gives_none(functions):
    with RewardPool(functions("step_in_kwargs"), workers=1) as pool:
        assert score(pool, [["a"]], trainer_state=State(7)).values[0, 0] == 7
        assert score(pool, [["a"]]).values[0, 0] == -1


def test_a_function_cannot_change_the_trainers_own_state(functions):
    state = State(1)
    with RewardPool(functions("changes_state"), workers=1) as pool:
        score(pool, [["a"]], trainer_state=state)
    assert state.global_step == 1


def test_a_trainer_state_that_cannot_be_unpickled_is_reported_and_is_none(functions):
    with RewardPool(functions("row_by_row", "step_in_kwargs"), workers=1) as pool:
        got = score(pool, [["a", "b"]], trainer_state=Unpicklable())
        assert "no such state there" in pool.messages["row_by_row"]["errors"]
    np.testing.assert_array_equal(got.values, [[2, -1], [2, -1]])


def test_log_extra_log_metric_and_trainer_state_are_not_required_columns(functions):
    pool = RewardPool(functions("step_of", "row_by_row"))
    pool.check_columns({"prompts", "completions"})
