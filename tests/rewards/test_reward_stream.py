"""Streamed rewards: the same scores in whatever order rows arrive, scored at once, and nothing left after a failure."""

import contextlib
import dataclasses
import gc
import itertools
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool

NAN = np.nan
PATIENCE = 60  # seconds to wait for an event on a busy machine

# Each row's completion says what the function does to it. It writes files to the folder `there`, and
# `meet` waits for one.
FUNCTIONS = """
import asyncio, os, pathlib, time

def act(word, there):
    if word == "raise":
        raise RuntimeError("boom on purpose")
    if word == "exit":
        os._exit(3)
    if word == "hang":
        (pathlib.Path(there) / "hangs").touch()
        time.sleep(600)
    if word == "late":
        (pathlib.Path(there) / "hangs").touch()
        time.sleep(0.3)
        return 99.0
    return None if word == "none" else float(word)

def grade(completions, there, log_extra, log_metric):
    log_extra("word", completions)
    log_metric("size", len(completions))
    (pathlib.Path(there[0]) / completions[0][:9]).touch()
    return [act(word, there[0]) for word in completions]

async def slowly(completions, there, log_extra, **columns):
    log_extra("letters", [len(word) for word in completions])
    await asyncio.sleep(0)
    return [act(word, there[0]) for word in completions]

async def meet(completions, there):
    \"\"\"Writes a file when it starts; ends when the call for `last` has started.\"\"\"
    here = pathlib.Path(there[0])
    (here / completions[0]).touch()
    while not (here / "last").exists():
        await asyncio.sleep(0.01)
    return [1.0] * len(completions)

def group_size(completions, **columns):
    return [float(len(completions))] * len(completions)

def step(completions, trainer_state):
    return [float(trainer_state)] * len(completions)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("streamed_rewards") / "streamed_rewards.py"
    path.write_text(FUNCTIONS)
    return lambda *names: [f"{path}:{name}" for name in names]


@pytest.fixture(scope="module")
def both(functions):
    with RewardPool(functions("grade", "slowly"), workers=2) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def both_is_started(both, tmp_path_factory):
    while (
        sum(worker.idle for worker in both._worker_pool.workers) < 2
    ):  # `leaves_nothing` counts only what a test adds
        score(both, [["1"]] * 2, tmp_path_factory.mktemp("start"))


@pytest.fixture(autouse=True)
def leaves_nothing():
    before = running()
    yield
    until(lambda: running() == before)


def running():
    """Threads of pools in this process, and the processes they have started."""
    threads = {thread for thread in threading.enumerate() if thread.name in ("rewards", "reward")}
    return threads | {process.pid for process in psutil.Process().children(recursive=True)}


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s"
        time.sleep(0.005)


def add(stream, first, groups, there, name="p"):
    """Groups of words, from row `first` on, at once; the prompts tell them apart."""
    words = [word for group in groups for word in group]
    prompts = [f"{name}{first}.{i}" for i, group in enumerate(groups) for _ in group]
    stream.add(first, prompts, words, {"there": [str(there)] * len(words)})


def score(pool, groups, there):
    words = [word for group in groups for word in group]
    with pool.stream(len(words)) as stream:
        add(stream, 0, groups, there)
        return stream.finish()


words = st.lists(st.sampled_from(["1", "2.5", "none", "nan", "raise"]), min_size=1, max_size=3)


@st.composite
def portions(draw):
    """[(first row, groups)] in any order: rows of some groups cut anywhere between two of them."""
    groups = draw(st.lists(words, max_size=5))
    cuts = sorted(draw(st.sets(st.integers(0, len(groups)))) | {0, len(groups)})
    rows = np.cumsum([0, *map(len, groups)])
    cut = [(int(rows[a]), groups[a:b]) for a, b in itertools.pairwise(cuts)]
    return groups, draw(st.permutations(cut))


@given(portions())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_do_not_depend_on_the_order_in_which_rows_arrive(both, tmp_path, case):
    groups, coming = case
    words = [word for group in groups for word in group]
    prompts = [i for i, group in enumerate(groups) for _ in group]
    expected = both.score(prompts, words, {"there": [str(tmp_path)] * len(words)})
    with both.stream(len(words)) as stream:
        for first, some in coming:
            add(stream, first, some, tmp_path)
        got = stream.finish()
    for field in dataclasses.fields(expected):
        np.testing.assert_equal(getattr(got, field.name), getattr(expected, field.name), field.name)
    np.testing.assert_array_equal(got.values[:, 0], [np.float64(NUMBER.get(word, NAN)) for word in words])


NUMBER = {"1": 1.0, "2.5": 2.5}


def test_a_group_is_scored_before_the_others_have_arrived(functions, tmp_path):
    with RewardPool(functions("grade"), workers=1) as pool, pool.stream(2) as stream:
        add(stream, 1, [["2"]], tmp_path)
        until((tmp_path / "2").exists)
        add(stream, 0, [["1"]], tmp_path)
        assert stream.finish().values.tolist() == [[1], [2]]


def test_later_async_groups_start_while_earlier_ones_wait(functions, tmp_path):
    """In the only worker: the first call ends when the last has started."""
    with RewardPool(functions("meet"), workers=1, timeout=PATIENCE) as pool, pool.stream(3) as stream:
        for row, word in enumerate(["first", "second", "last"]):
            add(stream, row, [[word]], tmp_path)
            until((tmp_path / word).exists)
        assert stream.finish().values.tolist() == [[1]] * 3
        assert len(pool._worker_pool.workers) == 1


def test_later_async_groups_start_while_earlier_ones_wait_in_the_trainer_too(tmp_path):
    lock = threading.Lock()  # no pickle for locks
    seen = []

    async def here(completions):
        import asyncio

        with lock:
            seen.extend(completions)
        while "last" not in seen:
            await asyncio.sleep(0.01)
        return [1.0]

    with RewardPool([here], workers=1, timeout=PATIENCE) as pool, pool.stream(2) as stream:
        stream.add(0, ["p"], ["first"])
        until(lambda: seen == ["first"])
        stream.add(1, ["q"], ["last"])
        assert stream.finish().values.tolist() == [[1]] * 2


def test_a_worker_blocked_in_an_async_function_delays_no_other(functions, tmp_path):
    """It is due more than a socket holds; the other worker still gets its own rows."""
    large = "3" + " " * 4_000_000
    with (
        RewardPool(functions("slowly", "group_size"), workers=2, timeout=600) as pool,
        pool.stream(3) as stream,
    ):
        add(stream, 0, [["hang"]], tmp_path)
        until((tmp_path / "hangs").exists)
        add(stream, 1, [[large]], tmp_path)
        add(stream, 2, [["4"]], tmp_path)
        values = stream._batch.scores.values
        until(lambda: values[:, 1].tolist() == [1, 1, 1])
        assert np.isnan(values[:, 0]).all()


# Words -> values of `grade` and `slowly`; errors, timeouts, nans, units tried again of each.
BAD_GROUPS = [
    (["1", "raise"], [1, NAN], (1, 0, 0, 1)),
    (["exit", "2"], [NAN, 2], (1, 0, 0, 1)),
    (["1", "hang"], [1, NAN], (0, 1, 0, 1)),
    (["nan", "none", "3"], [NAN, NAN, 3], (0, 0, 1, 0)),
]


@pytest.mark.parametrize(("words", "values", "counts"), BAD_GROUPS)
def test_a_failing_row_that_arrives_in_between_loses_only_its_own_score(
    functions, tmp_path, words, values, counts
):
    pool = RewardPool(functions("grade", "slowly"), workers=2, timeout=1.5)
    with pool, pool.stream(len(words) + 2) as stream:
        add(stream, 1, [words], tmp_path)
        until((tmp_path / words[0]).exists)
        add(stream, 0, [["7"]], tmp_path)
        until((tmp_path / "7").exists)
        add(stream, len(words) + 1, [["8"]], tmp_path)
        got = stream.finish()
    np.testing.assert_array_equal(got.values, np.array([[7, *values, 8]] * 2).T)
    for name in pool.names:
        found = [counter[name] for counter in (got.errors, got.timeouts, got.nans, got.retried)]
        assert tuple(found) == counts
        assert len(pool.messages[name]) == sum(map(bool, counts[:3]))


def test_stop_is_raised_while_rows_are_added(functions, tmp_path):
    with RewardPool(functions("grade"), workers=1, on_error="stop") as pool, pool.stream(9) as stream:
        add(stream, 0, [["raise"]], tmp_path)
        until(lambda: stream._fault)
        with pytest.raises(UserError, match=r"'grade' failed on the completion 'raise': RuntimeError: boom"):
            add(stream, 1, [["1"]], tmp_path)


def test_stop_is_raised_at_the_end_and_the_pool_stays_usable(functions, tmp_path):
    with RewardPool(functions("grade"), workers=2, on_error="stop") as pool:
        stream = pool.stream(2)
        add(stream, 0, [["late"], ["nan"]], tmp_path)
        for _ in range(2):
            with pytest.raises(UserError, match="'grade' gave no number on the completion 'nan'"):
                stream.finish()
        assert score(pool, [["5"]] * 4, tmp_path).values.tolist() == [[5]] * 4


@pytest.mark.parametrize("word", ["hang", "late"])
def test_an_exception_of_the_caller_ends_the_work_and_no_late_answer_counts(functions, tmp_path, word):
    with RewardPool(functions("grade", "slowly"), workers=2, timeout=PATIENCE) as pool:
        with contextlib.suppress(ZeroDivisionError), pool.stream(9) as stream:
            add(stream, 3, [[word], ["1"]], tmp_path)
            until((tmp_path / "hangs").exists)
            raise ZeroDivisionError
        assert not pool._worker_pool.busy
        with pytest.raises(RuntimeError, match="cancelled"):
            add(stream, 0, [["1"]], tmp_path)
        assert score(pool, [["5", "6"]] * 2, tmp_path).values.tolist() == [[5, 5], [6, 6]] * 2


def test_ctrl_c_interrupts_the_wait_for_the_end_at_once(functions, tmp_path, request):
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals reach the main thread only")

    # A shell ignores interrupts for what it starts in the background, and Python then leaves it at that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def press():
        until((tmp_path / "hangs").exists)
        signal.pthread_kill(main.ident, signal.SIGINT)

    with RewardPool(functions("grade"), workers=1, timeout=600) as pool:
        hand = threading.Thread(target=press)
        hand.start()
        with pytest.raises(KeyboardInterrupt):
            score(pool, [["hang"]], tmp_path)
        hand.join()
        assert score(pool, [["5"]], tmp_path).values.tolist() == [[5]]


def test_closing_a_pool_ends_its_open_stream(functions, tmp_path):
    before = running()
    pool = RewardPool(functions("grade"), workers=1, timeout=PATIENCE)
    with pool.stream(2) as stream:
        add(stream, 0, [["hang"]], tmp_path)
        until((tmp_path / "hangs").exists)
        pool.close()
        assert running() == before
        with pytest.raises(RuntimeError, match="cancelled"):
            add(stream, 1, [["1"]], tmp_path)
    assert score(pool, [["1"]], tmp_path).values.tolist() == [[1]], "a closed pool can be used anew"
    pool.close()


def test_a_garbage_collected_pool_leaves_no_thread_and_no_process(functions, tmp_path):
    pool = RewardPool(functions("grade"), workers=1)
    score(pool, [["1"]], tmp_path)
    del pool
    gc.collect()


def test_functions_that_run_in_the_trainer_are_streamed_too():
    lock, seen = threading.Lock(), []

    def here(completions):
        with lock:
            seen.extend(completions)
        if "raise" in completions:
            raise RuntimeError("boom")
        return [float(os.getpid() == trainer)] * len(completions)

    trainer = os.getpid()
    with RewardPool([here, "think_answer_format"], workers=1) as pool:
        with pytest.warns(UserWarning, match="'here' cannot be sent to a worker process"):
            stream = pool.stream(3)
        stream.add(1, ["q", "q"], ["b", "raise"])
        until(lambda: seen)
        stream.add(0, ["p"], ["a"])
        got = stream.finish()
        np.testing.assert_array_equal(got.values, [[1, 0], [1, 0], [NAN, 0]])


def test_the_thread_of_waiting_async_functions_ends_with_its_stream():
    lock, seen = threading.Lock(), []

    async def forever(completions):
        import asyncio

        with lock:
            seen.extend(completions)
        await asyncio.sleep(600)

    with RewardPool([forever], workers=1, timeout=600) as pool, pool.stream(1) as stream:
        stream.add(0, ["p"], ["a"])
        until(lambda: seen)  # `leaves_nothing` does the rest


def test_two_pools_take_turns_and_work_side_by_side(functions, tmp_path):
    with RewardPool(functions("grade"), workers=1) as one, RewardPool(functions("slowly"), workers=1) as two:
        for _ in range(2):
            assert score(one, [["1"]], tmp_path).values.tolist() == [[1]]
            assert score(two, [["2"]], tmp_path).values.tolist() == [[2]]
        with one.stream(2) as first, two.stream(2) as second:
            for row in (1, 0):
                add(first, row, [["3"]], tmp_path)
                add(second, row, [["4"]], tmp_path)
            assert second.finish().values.tolist() == [[4]] * 2
            assert first.finish().values.tolist() == [[3]] * 2


def test_equal_prompts_added_separately_are_two_groups(functions):
    with RewardPool(functions("group_size"), workers=1) as pool:
        with pool.stream(5) as stream:
            stream.add(0, ["p", "p"], ["a", "b"])
            stream.add(2, ["p", "p", "p"], ["c", "d", "e"])
            assert stream.finish().values[:, 0].tolist() == [2, 2, 3, 3, 3]
        assert pool.score(["p"] * 5, list("abcde")).values[:, 0].tolist() == [5] * 5


def test_rows_added_late_are_scored_with_the_state_of_their_own_stream(functions):
    with RewardPool(functions("step"), workers=2) as pool:
        for state in (3, 4):
            with pool.stream(4, state) as stream:
                for row in (2, 3, 0, 1):
                    stream.add(row, [row], ["a"])
                assert stream.finish().values[:, 0].tolist() == [state] * 4


def test_lists_that_the_caller_changes_after_an_add_change_no_score(functions):
    with RewardPool(functions("group_size"), workers=1) as pool, pool.stream(2) as stream:
        prompts, completions = ["p", "p"], ["a", "b"]
        stream.add(0, prompts, completions)
        prompts[1] = "q"
        del completions[0]
        assert stream.finish().values[:, 0].tolist() == [2, 2]


def test_rows_that_are_missing_doubled_or_unlike_are_refused(functions, tmp_path):
    with RewardPool(functions("grade"), workers=1) as pool, pool.stream(3) as stream:
        with pytest.raises(UserError, match="'grade' needs a column 'there'"):
            stream.add(0, ["p"], ["1"])
        add(stream, 1, [["1"]], tmp_path)
        with pytest.raises(ValueError, match="rows 0 to 1 of 3 are not all missing"):
            add(stream, 0, [["1", "2"]], tmp_path)
        with pytest.raises(ValueError, match="rows 2 to 3 of 3"):
            add(stream, 2, [["1", "2"]], tmp_path)
        with pytest.raises(ValueError, match=r"'there'\] after rows with"):
            stream.add(0, ["p"], ["1"], {"there": ["x"], "other": [1]}, [[1]])
        with pytest.raises(ValueError, match="these lengths differ"):
            stream.add(0, ["p"], ["1"], {"there": []})
        with pytest.raises(ValueError, match="2 of 3 rows were not added"):
            stream.finish()
        with pytest.raises(RuntimeError, match="another stream of rewards is open"):
            pool.stream(1)
        add(stream, 2, [["2"]], tmp_path)
        add(stream, 0, [["0"]], tmp_path)
        assert stream.finish().values[:, 0].tolist() == [0, 1, 2]
