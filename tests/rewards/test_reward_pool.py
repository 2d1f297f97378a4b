"""Rewards that misbehave in every known way: the trainer always gets its scores back, in time."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool

NAN = np.nan

# Each row's completion says what the function does to it.
ATTACKS = """
import asyncio, ctypes, os, subprocess, sys, time

def act(word):
    if word == "raise":
        raise RuntimeError("boom on purpose")
    if word == "leave":
        sys.exit(4)
    if word == "exit":
        os._exit(3)
    if word == "segfault":
        ctypes.string_at(0)
    if word == "hang":
        time.sleep(600)
    if word == "late":
        time.sleep(0.3)
        return 99.0
    if word == "spin":
        while True:
            pass
    if word == "children":
        subprocess.Popen(["sleep", "98765"])
        time.sleep(600)
    special = {"none": None, "text": "1.0", "list": [1], "yes": True}
    return special[word] if word in special else float(word)  # "nan" and "inf" are floats

def grade(prompts, completions, **columns):
    return [act(word) for word in completions]

async def slowly(prompts, completions, **columns):
    await asyncio.sleep(0)
    return [act(word) for word in completions]

def chatty(prompts, completions, **columns):
    print("x" * 200_000)
    os.write(1, b"raw bytes on stdout")
    return [float(word) for word in completions]

def short(prompts, completions, **columns):
    return [1.0]

def empty(prompts, completions, **columns):
    return []

def scalar(prompts, completions, **columns):
    return 1.0

def picky(completions, level, missing=5):
    return [level[i] + missing for i in range(len(completions))]

def seen(prompts, completions, completion_ids=None, **columns):
    assert sorted(columns) == ["level", "log_extra", "log_metric", "trainer_state"], columns
    return [len(ids) + level for ids, level in zip(completion_ids, columns["level"])]

def environment(prompts, completions, **columns):
    import __main__
    assert "worker" in __main__.__file__
    return [float(os.environ["JAX_PLATFORMS"] == "cpu")] * len(prompts)

def demanding(prompts, completions, answer, **columns):
    return [1.0] * len(prompts)
"""


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "attacks.py"
    path.write_text(ATTACKS)
    return path


def score(pool, groups, **rest):
    """Score groups of words; prompts p0, p1, ... tell them apart. Returns the Scores."""
    prompts = [f"p{i}" for i, group in enumerate(groups) for _ in group]
    return pool.score(prompts, [word for group in groups for word in group], **rest)


def children():
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def leaves_no_process():
    before = {p.pid for p in children()}
    yield
    assert [p for p in children() if p.pid not in before] == []


@pytest.fixture(scope="module")
def shared_pool(attacks):
    with RewardPool([f"{attacks}:grade"], workers=2, timeout=0.8) as pool:
        yield pool


# Group -> values; errors, timeouts, nans, units tried again.
BAD_GROUPS = [
    (["1", "2", "none"], [1, 2, NAN], (0, 0, 0, 0)),
    (["1", "raise", "3"], [1, NAN, 3], (1, 0, 0, 1)),
    (["leave", "2"], [NAN, 2], (1, 0, 0, 1)),
    (["exit", "2"], [NAN, 2], (1, 0, 0, 1)),
    (["segfault", "2"], [NAN, 2], (1, 0, 0, 1)),
    (["1", "hang"], [1, NAN], (0, 1, 0, 1)),
    (["spin", "2"], [NAN, 2], (0, 1, 0, 1)),
    (["children", "2"], [NAN, 2], (0, 1, 0, 1)),
    (["nan", "inf", "1"], [NAN, NAN, 1], (0, 0, 2, 0)),
    (["text", "list", "yes"], [NAN, NAN, 1], (2, 0, 0, 0)),
]


@pytest.fixture(scope="module", autouse=True)
def shared_pool_is_started(shared_pool):
    score(shared_pool, [["1"], ["2"]])  # so that `leaves_no_process` counts only what a test adds


@pytest.mark.parametrize(("words", "values", "counts"), BAD_GROUPS)
def test_a_failing_row_loses_only_its_own_score(attacks, words, values, counts):
    with RewardPool([f"{attacks}:grade"], workers=2, timeout=0.8) as pool:
        got = score(pool, [["7"], words, ["8"]])
    np.testing.assert_array_equal(got.values[:, 0], [7, *values, 8])
    found = [counter["grade"] for counter in (got.errors, got.timeouts, got.nans, got.retried)]
    assert tuple(found) == counts


def test_child_processes_of_a_killed_reward_are_killed_too(attacks):
    with RewardPool([f"{attacks}:grade"], workers=1, timeout=0.3) as pool:
        score(pool, [["children"]])
        left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]]
        assert psutil.wait_procs(left, timeout=2)[1] == []


def test_the_first_message_of_each_kind_is_kept(attacks):
    with RewardPool([f"{attacks}:grade"], workers=1, timeout=0.3) as pool:
        score(pool, [["raise", "1"]])
        score(pool, [["exit", "nan", "hang"]])
        assert pool.messages["grade"]["errors"] == "RuntimeError: boom on purpose (attacks.py, line 6)"
        assert "reward_timeout, 0.3 s" in pool.messages["grade"]["timeouts"]
        assert pool.messages["grade"]["nans"] == "returned NaN or an infinity"


def test_a_dead_process_says_how_it_ended(attacks):
    with RewardPool([f"{attacks}:grade"], workers=1) as pool:
        score(pool, [["exit"]])
        assert "exit status 3" in pool.messages["grade"]["errors"]
    with RewardPool([f"{attacks}:grade"], workers=1) as pool:
        score(pool, [["segfault"]])
        assert "signal 11" in pool.messages["grade"]["errors"]


def test_results_of_a_wrong_length_or_type_are_errors(attacks):
    specs = [f"{attacks}:{name}" for name in ("short", "empty", "scalar")]
    with RewardPool(specs, workers=2) as pool:
        got = score(pool, [["1", "2"]])
        assert pool.messages["short"]["errors"] == "returned 1 scores for 2 completions"
        assert pool.messages["scalar"]["errors"] == "returned float 1.0, not a list of numbers"
    np.testing.assert_array_equal(got.values, [[1, NAN, NAN], [1, NAN, NAN]])
    assert got.errors == {"short": 0, "empty": 2, "scalar": 2}
    assert got.retried == {"short": 1, "empty": 1, "scalar": 1}


def test_prints_cannot_break_the_protocol_nor_our_stdout(attacks, capfd):
    with RewardPool([f"{attacks}:chatty"], workers=1) as pool:
        np.testing.assert_array_equal(score(pool, [["1", "2"]]).values[:, 0], [1, 2])
    out, err = capfd.readouterr()
    assert out == ""
    assert "raw bytes on stdout" in err


def test_async_functions_are_awaited(attacks):
    with RewardPool([f"{attacks}:slowly"], workers=1) as pool:
        got = score(pool, [["1", "raise"], ["none", "2"]])
    np.testing.assert_array_equal(got.values[:, 0], [1, NAN, NAN, 2])
    assert got.errors == {"slowly": 1}


def test_functions_receive_the_columns_and_ids_that_they_accept(attacks):
    with RewardPool([f"{attacks}:{n}" for n in ("picky", "seen", "environment")], workers=2) as pool:
        rest = {"columns": {"level": np.array([10, 20, 30])}, "completion_ids": [[1], [1, 2], []]}
        got = score(pool, [["a", "b"], ["c"]], **rest)
    np.testing.assert_array_equal(got.values, [[15, 11, 1], [25, 22, 1], [35, 30, 1]])


def test_a_missing_column_is_named_before_anything_runs(attacks):
    pool = RewardPool([f"{attacks}:demanding"])
    with pytest.raises(UserError, match=r"'demanding' needs a column 'answer'; there are completions"):
        score(pool, [["1"]])


def test_a_column_of_another_length_is_refused(shared_pool):
    with pytest.raises(ValueError, match="level"):
        score(shared_pool, [["1"]], columns={"level": [1, 2]})


def test_no_rows_give_no_scores(shared_pool):
    assert shared_pool.score([], []).values.shape == (0, 1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("raise", r"'grade' failed on the completion 'raise': RuntimeError: boom"),
        ("hang", r"'grade' timed out on the completion 'hang'"),
        ("nan", r"'grade' gave no number on the completion 'nan'"),
    ],
)
def test_stop_names_function_completion_and_fault(attacks, word, message):
    pool = RewardPool([f"{attacks}:grade"], workers=2, timeout=0.3, on_error="stop")
    with pool, pytest.raises(UserError, match=message):
        score(pool, [["1", word]])


def test_after_a_stop_no_late_answer_is_taken_for_a_new_one(attacks):
    with RewardPool([f"{attacks}:grade"], workers=2, on_error="stop") as pool:
        while sum(worker.idle for worker in pool._worker_pool.workers) < 2:
            score(pool, [["1"]] * 2)
        with pytest.raises(UserError):
            score(pool, [["late"], ["nan"]])  # the second fails at once, the first is still at work
        np.testing.assert_array_equal(score(pool, [["5"]] * 4).values[:, 0], [5] * 4)


def test_hundreds_of_tiny_units_reuse_the_workers(shared_pool):
    score(shared_pool, [["0"]])
    before = {worker.process.pid for worker in shared_pool._worker_pool.workers}
    start = time.perf_counter()
    got = score(shared_pool, [[str(i)] for i in range(600)])
    assert time.perf_counter() - start < 5
    np.testing.assert_array_equal(got.values[:, 0], np.arange(600))
    assert {worker.process.pid for worker in shared_pool._worker_pool.workers} == before


def test_units_run_side_by_side(attacks):
    with RewardPool([f"{attacks}:grade"], workers=4, timeout=0.8) as pool:
        score(pool, [["1"]] * 4)
        start = time.perf_counter()
        score(pool, [["hang"]] * 4)  # 4 x (once + again) x 0.8 s = 6.4 s one after the other
        assert time.perf_counter() - start < 4.5


def test_start_up_is_not_counted_against_the_deadline(tmp_path):
    path = tmp_path / "slow_import.py"
    path.write_text(
        "import time\ntime.sleep(0.7)\ndef f(prompts, completions, **c): return [1.0] * len(prompts)\n"
    )
    with RewardPool([f"{path}:f"], workers=1, timeout=0.4) as pool:
        assert score(pool, [["a"]]).values[0, 0] == 1.0


def test_workers_lost_between_two_steps_are_replaced(attacks):
    """Idle or still starting: one worker does both units before the other has loaded the file."""
    with RewardPool([f"{attacks}:grade"], workers=2) as pool:
        score(pool, [["1"], ["2"]])
        for worker in pool._worker_pool.workers:
            worker.process.kill()
            worker.process.wait()
        got = score(pool, [["3"], ["4"]])
    np.testing.assert_array_equal(got.values[:, 0], [3, 4])
    assert got.errors == got.retried == {"grade": 0}


def test_a_pool_survives_the_thread_that_started_it(attacks):
    with RewardPool([f"{attacks}:grade"], workers=2) as pool:
        thread = threading.Thread(target=score, args=(pool, [["1"], ["2"]]))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(score(pool, [["3"], ["4"]]).values[:, 0], [3, 4])


def test_a_file_that_only_fails_in_the_worker_is_a_user_error(tmp_path):
    path = tmp_path / "elsewhere.py"
    body = f"def f(prompts, completions): return []\nimport os\nhere = os.getpid() == {os.getpid()}\n"
    path.write_text(body + "assert here\n")
    with (
        RewardPool([f"{path}:f"], workers=1) as pool,
        pytest.raises(UserError, match=r"cannot load .*elsewhere\.py:f.*AssertionError"),
    ):
        score(pool, [["a"]])
    path.write_text(body + "here or os._exit(9)\n")
    with RewardPool([f"{path}:f"], workers=1) as pool, pytest.raises(UserError, match="exit status 9"):
        score(pool, [["a"]])


def test_closures_and_lambdas_run_in_workers():
    factor = 3
    pool = RewardPool([lambda prompts, completions, **_: [factor * len(c) for c in completions]], workers=1)
    with pool:
        np.testing.assert_array_equal(score(pool, [["a", "bb"]]).values[:, 0], [3, 6])
        assert not pool._worker_pool.local
    with pytest.raises(UserError, match="two functions are called '<lambda>'"):
        RewardPool([lambda: 1, lambda: 2])


def test_what_cannot_be_pickled_runs_in_the_trainer_under_a_deadline():
    lock = threading.Lock()  # no pickle for locks

    def here(prompts, completions, **columns):
        with lock:
            if "raise" in completions:
                raise RuntimeError("boom")
        if "hang" in completions:
            time.sleep(3)
        return [float(os.getpid() == trainer)] * len(completions)

    trainer = os.getpid()
    with RewardPool([here, "think_answer_format"], workers=1, timeout=0.3) as pool:
        with pytest.warns(UserWarning, match="'here' cannot be sent to a worker process"):
            got = score(pool, [["a", "raise"], ["hang", "b"]])
        np.testing.assert_array_equal(got.values, [[1, 0], [NAN, 0], [NAN, 0], [1, 0]])
        assert (got.errors["here"], got.timeouts["here"]) == (1, 1)
        assert "cannot be killed" in pool.messages["here"]["timeouts"]


def test_what_a_worker_cannot_unpickle_runs_in_the_trainer():
    class Sticky:
        __name__ = "sticky"

        def __call__(self, prompts, completions, **columns):
            return [1.0] * len(completions)

        def __reduce__(self):
            return (exec, (f"import os\nif os.getpid() != {os.getpid()}: raise ImportError('not here')",))

    with RewardPool([Sticky()], workers=2) as pool:
        with pytest.warns(UserWarning, match="sticky.*ImportError: not here"):
            got = score(pool, [["a"], ["b"], ["c"]])
        np.testing.assert_array_equal(got.values[:, 0], [1, 1, 1])


TRAINER = """
import sys, time
from grpo_jax.rewards import RewardPool
if __name__ != "__main__":
    raise SystemExit("the trainer's script was imported again")
def f(prompts, completions, **columns):
    if completions[0] == "spin":
        while True: pass
    return [1.0] * len(completions)
pool = RewardPool([f], workers=2, timeout=60)
total = pool.score(["a", "b"], ["x", "y"]).values.sum()
print(total, *(worker.process.pid for worker in pool._worker_pool.workers), flush=True)
pool.score(["a"], [sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize("word", ["idle", "spin"])
def test_workers_die_with_a_killed_trainer(tmp_path, word):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAINER))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    trainer = subprocess.Popen(
        [sys.executable, script, word], stdout=subprocess.PIPE, text=True, env=environment
    )
    total, *pids = trainer.stdout.readline().split()
    workers = [psutil.Process(int(pid)) for pid in pids]
    time.sleep(0.3)  # let it hand out the second call
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert total == "2.0"
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_close_is_quick_leaves_no_zombie_and_can_be_repeated(attacks):
    pool = RewardPool([f"{attacks}:grade"], workers=3)
    score(pool, [["1"]] * 3)
    pids = [worker.process.pid for worker in pool._worker_pool.workers]
    start = time.perf_counter()
    pool.close()
    pool.close()
    assert time.perf_counter() - start < 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
