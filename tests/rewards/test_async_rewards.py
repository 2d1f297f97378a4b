"""Async rewards wait for services: they must wait side by side, and one that hangs must cost only itself."""

import time

import numpy as np
import pytest

from grpo_jax.rewards import RewardPool

NAN = np.nan
FUNCTIONS = """
import asyncio, os, sys, time

loops = set()

async def act(word):
    if word == "slow":
        await asyncio.sleep(0.4)
    if word == "hang":
        await asyncio.sleep(600)
    if word == "block":
        time.sleep(600)
    if word == "exit":
        os._exit(3)
    if word == "leave":
        await asyncio.create_task(leave())
    if word == "raise":
        raise TimeoutError("the service did not answer")
    if word == "cancel":
        raise asyncio.CancelledError
    return 1.0

async def leave():
    sys.exit(5)

async def first(completions, log_extra, **columns):
    scores = await asyncio.gather(*(act(word) for word in completions))
    log_extra("word", completions)
    return scores

async def never_waits(completions, **columns):
    time.sleep(0.3)
    return [1.0] * len(completions)

class Second:
    async def __call__(self, completions, **columns):
        return [await act("slow" if word == "slow" else "") for word in completions]

second = Second()

async def same_loop(completions, **columns):
    loops.add(asyncio.get_running_loop())
    return [float(len(loops))] * len(completions)

def plain(completions, **columns):
    return [3.0] * len(completions)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("async_rewards") / "async_rewards.py"
    path.write_text(FUNCTIONS)
    return lambda *names: [f"{path}:{name}" for name in names]


def score(pool, groups):
    prompts = [f"p{i}" for i, group in enumerate(groups) for _ in group]
    return pool.score(prompts, [word for group in groups for word in group])


def test_functions_and_groups_wait_side_by_side_in_one_worker(functions):
    with RewardPool(functions("first", "second"), workers=1) as pool:
        score(pool, [["a"]])
        start = time.perf_counter()
        got = score(pool, [["slow", "a"], ["slow", "b"], ["slow", "c"]])  # 2.4 s one after the other
        assert time.perf_counter() - start < 1.2
        assert len(pool._worker_pool.workers) == 1
    np.testing.assert_array_equal(got.values, np.ones((6, 2)))


# Words -> values; errors, timeouts, units tried again.
BAD = [
    (["a", "hang"], (0, 1, 1)),
    (["a", "raise"], (1, 0, 1)),
    (["a", "cancel"], (1, 0, 1)),
    (["a", "block"], (0, 1, 1)),
    (["a", "exit"], (1, 0, 1)),
    (["a", "leave"], (1, 0, 1)),
]


@pytest.mark.parametrize(("words", "counts"), BAD)
def test_a_failing_row_loses_only_its_own_score(functions, words, counts):
    with RewardPool(functions("first", "second", "plain"), workers=1, timeout=0.6) as pool:
        got = score(pool, [["b"], words, ["c", "d"]])
        assert list(pool.messages["Second"]) == [], "a function was blamed that only ran beside the fault"
    np.testing.assert_array_equal(got.values[:, 0], [1, 1, NAN, 1, 1])
    np.testing.assert_array_equal(got.values[:, 1:], [[1, 3]] * 5)
    assert (got.errors["first"], got.timeouts["first"], got.retried["first"]) == counts
    assert got.extras["word"] == ["b", "a", None, "c", "d"]


def test_a_function_that_waits_too_long_is_cancelled_and_its_worker_kept(functions):
    with RewardPool(functions("first"), workers=1, timeout=0.3) as pool:
        score(pool, [["a"]])
        before = pool._worker_pool.workers[0].process.pid
        score(pool, [["a", "hang"], ["b"]])
        assert [worker.process.pid for worker in pool._worker_pool.workers] == [before]
        assert pool.messages["first"]["timeouts"] == "took longer than reward_timeout, 0.3 s"


def test_a_timeout_raised_by_the_function_is_an_error_with_its_message(functions):
    with RewardPool(functions("first"), workers=1) as pool:
        score(pool, [["raise"]])
        assert "the service did not answer" in pool.messages["first"]["errors"]


def test_a_blocking_async_function_has_the_deadline_for_each_group(functions):
    with RewardPool(functions("never_waits"), workers=1, timeout=0.5) as pool:
        score(pool, [["a"]])
        before = pool._worker_pool.workers[0].process.pid
        assert score(pool, [["a"]] * 7).timeouts["never_waits"] == 0  # 2.1 s in all
        assert [worker.process.pid for worker in pool._worker_pool.workers] == [before]


def test_all_calls_of_an_async_function_run_on_one_event_loop(functions):
    with RewardPool(functions("same_loop"), workers=1) as pool:
        for _ in range(3):
            assert score(pool, [["a"], ["b"]]).values[:, 0].tolist() == [1, 1]
