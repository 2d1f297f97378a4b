"""Rewards that run in the script's own process see all rows at once, and what they do is seen by the script."""

import asyncio
import threading

import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool, accuracy_reward

PROMPTS = ["p0", "p0", "p1", "p1"]
TEXTS = ["a", "bb", "ccc", "dddd"]


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


def here(functions, **settings):
    return RewardPool(functions, objects_in_process=True, **settings)


def test_side_effects_are_visible_and_a_function_is_called_once_with_all_rows_on_the_callers_thread():
    seen, threads = [], []

    def remember(prompts, completions, number, **columns):
        seen.append((prompts, completions, number))
        threads.append(threading.current_thread())
        return lengths(completions)

    with here([remember]) as pool:
        got = pool.score(PROMPTS, TEXTS, {"number": [0, 1, 2, 3]})
    assert seen == [(PROMPTS, TEXTS, [0, 1, 2, 3])]
    assert threads == [threading.main_thread()], "where signals and their alarms work"
    assert got.values[:, 0].tolist() == [1, 2, 3, 4]


def test_arguments_and_the_trainers_state_are_not_copied():
    state, given = threading.Lock(), []  # which no pickle holds

    def remember(completions, trainer_state, thing):
        given.extend([trainer_state, *thing])
        return [1.0] * len(completions)

    things = [threading.Lock() for _ in TEXTS]
    with here([remember]) as pool:
        pool.score(PROMPTS, TEXTS, {"thing": things}, trainer_state=state)
    assert given == [state, *things]


def test_rows_that_a_function_does_not_score_are_not_shown_to_it():
    seen = []

    def remember(completions, **columns):
        seen.append(completions)
        return lengths(completions)

    with here([remember, lengths]) as pool, pool.stream(4) as stream:
        stream.add(2, PROMPTS[2:], TEXTS[2:])
        stream.add(0, PROMPTS[:2], TEXTS[:2], idle={0})
        got = stream.finish()
    assert seen == [["ccc", "dddd"]]
    np.testing.assert_array_equal(got.values, [[np.nan, 1], [np.nan, 2], [3, 3], [4, 4]])


def test_async_functions_are_awaited_together_on_one_loop_for_all_calls():
    started, loops = set(), set()

    def judge(name, other):
        async def reward(completions, **columns):
            started.add(name)
            loops.add(asyncio.get_running_loop())
            while other not in started:
                await asyncio.sleep(0.001)
            return lengths(completions)

        reward.__name__ = name
        return reward

    with here([judge("one", "two"), judge("two", "one")]) as pool:
        for _ in range(2):
            got = pool.score(PROMPTS, TEXTS)
    assert got.values.tolist() == [[n, n] for n in (1, 2, 3, 4)]
    assert len(loops) == 1


def test_logs_of_a_function_in_the_process_come_back_in_row_order():
    def logging(completions, log_extra, log_metric, **columns):
        log_extra("length", lengths(completions))
        log_metric("mean_length", sum(lengths(completions)) / 4)
        return [0.0] * len(completions)

    with here([logging]) as pool:
        got = pool.score(PROMPTS, TEXTS)
    assert (got.extras, got.metrics) == ({"length": [1, 2, 3, 4]}, {"mean_length": 2.5})


def picky(completions, **columns):
    if "bb" in completions:
        raise ValueError("two of b")
    return lengths(completions)


def test_only_the_bad_row_of_a_function_that_fails_is_lost():
    with here([picky, lengths]) as pool:
        got = pool.score(PROMPTS, TEXTS)
    np.testing.assert_array_equal(got.values[:, 0], [1, np.nan, 3, 4])
    assert got.errors == {"picky": 1, "lengths": 0}
    assert "two of b" in pool.messages["picky"]["errors"]


def test_an_error_stops_at_the_first_call_where_errors_stop_the_run():
    calls = []

    def fails(completions, **columns):
        calls.append(completions)
        return [1.0]

    with (
        here([fails], on_error="stop") as pool,
        pytest.raises(UserError, match="'fails' failed: returned 1 scores"),
    ):
        pool.score(PROMPTS, TEXTS)
    assert calls == [TEXTS]


@pytest.mark.parametrize(
    ("settings", "in_process"),
    [
        ({"objects_in_process": True}, {0, 1}),
        ({"workers": 0}, {0, 1, 2, 3}),
        ({"workers": 2}, set()),
        ({}, set()),
    ],
)
def test_functions_given_as_objects_or_all_or_none_run_in_the_process(settings, in_process):
    """Ready-made rewards keep their time limit; their options and names do not matter."""
    pool = RewardPool(
        [lengths, lambda completions: lengths(completions), accuracy_reward, "gsm8k"], **settings
    )
    assert pool.in_process == in_process


def test_no_worker_is_started_for_functions_in_the_process():
    with here([lengths]) as pool:
        pool.score(PROMPTS, TEXTS)
        assert pool._worker_pool.workers == []


def test_functions_in_the_process_and_in_workers_score_the_same_rows():
    seen = []

    def remember(completions, **columns):
        seen.extend(completions)
        return lengths(completions)

    with here([remember, "gsm8k"], workers=None) as pool:
        got = pool.score(PROMPTS, ["#### 1", "#### 2", "#### 1", "2"], {"answer": ["1"] * 4})
    assert got.values.tolist() == [[6, 1], [6, 0], [6, 1], [1, 0]]
    assert len(seen) == 4
