"""Runs reward functions on a step's completions, in worker processes, each call under a deadline.

A unit of work is one function on one prompt's group of rows. Units of plain functions go one at a time to any idle
worker; all units of async functions go to one worker, which runs them concurrently.

A unit that fails (raises, takes too long, returns a wrong number of scores, crashes its process) is retried row by
row, so that a bad row loses only its own score; rows that fail again score NaN and are counted. A process that
passes its deadline is killed, together with the processes it started, and replaced; an async function that passes
it is cancelled. A group that hangs on every row therefore costs 1 + G deadlines, shared by the workers.

All this happens on a thread, so that rewards are computed while the caller still samples: `RewardPool.stream`.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.verdicts import worst_of
from grpo_jax.rewards.load import Reward, is_foreign, load_reward, named_apart, parameters
from grpo_jax.rewards.pool.batch import RewardBatch, Scores
from grpo_jax.rewards.pool.in_process import InProcess
from grpo_jax.rewards.pool.logs import ALWAYS
from grpo_jax.rewards.pool.stream import Driver, Stream
from grpo_jax.rewards.pool.workers import WorkerPool


class RewardPool:
    """Scores completions with a list of rewards. Workers start with the first rows and end with `close` (or `with`).

    Args:
        functions: rewards, or anything that `load_reward` takes. Their names must differ; a built-in function that
            is given twice carries its options in its name.
        workers: the most worker processes at a time; None: one per core, at most 8; 0: none, so that all functions run
            in this process, as `in_process.py` says, without a time limit.
        objects_in_process: functions that were given as objects run in this process; those of this package do not.
        timeout: seconds that a unit may take once a worker has begun it. An async function begins every group that
            has arrived at once, and must answer each within this time.
        on_error: "count" scores a failing row NaN; "stop" raises `UserError` and names the row.

    `models` maps the index of each reward model to its folder or hub id; the pool does not compute those.
    `messages` holds, by function and kind of fault ("errors", "timeouts", "nans"), the first message.
    A function that cannot be pickled, and should run in a worker, runs in a thread of this process, with a warning.
    """

    def __init__(
        self,
        functions: Iterable[Any],
        *,
        workers: int | None = None,
        objects_in_process: bool = False,
        timeout: float = 10.0,
        on_error: Literal["count", "stop"] = "count",
    ):
        self.functions: list[Reward] = named_apart([load_reward(f) for f in functions])
        self.names = [f.name for f in self.functions]
        self.models = {number: f.model for number, f in enumerate(self.functions) if f.model}
        self._worst = [worst_of(f.function) for f in self.functions]
        self.on_error = on_error
        self.messages: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self.in_process = frozenset(
            number
            for number, reward in enumerate(self.functions)
            if not reward.model and (workers == 0 or (objects_in_process and is_foreign(reward)))
        )
        self._in_process = InProcess(self.functions)
        self._worker_pool = WorkerPool(self.functions, workers, timeout, self.in_process)
        self._driver = Driver(self._worker_pool)
        # Ends thread and workers of a pool that is garbage collected. They end with the interpreter anyway.
        weakref.finalize(self, self._driver.close).atexit = False

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and cancel an open stream; a later `score` or `stream` starts new workers."""
        self._driver.close()
        self._in_process.close()

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Any] | None = None,
        trainer_state: Any = None,
    ) -> Scores:
        """Score B rows with every function. All lists have B entries; a group is a run of equal prompts.

        Args:
            trainer_state: any picklable object; the functions get a copy. See `logs.py`.

        Raises:
            UserError: a function needs a missing column, cannot be loaded by a worker, or (on_error="stop") failed
                on a row.
            ValueError: the lengths differ.
        """
        with self.stream(len(completions), trainer_state) as stream:
            stream.add(0, prompts, completions, columns, completion_ids)
            return stream.finish()

    def stream(self, rows: int, trainer_state: Any = None) -> Stream:
        """Like `score`, for `rows` rows that arrive in parts; use it in a `with` statement.

        Raises:
            UserError: the state cannot be pickled.
            RuntimeError: another stream is open; a pool has one at a time.
        """
        batch = RewardBatch(
            names=self.names,
            rows=rows,
            messages=self.messages,
            stop=self.on_error == "stop",
            async_functions=self._worker_pool.async_functions,
            state=trainer_state,
            worst=self._worst,
            in_process=self.in_process,
        )
        return self._driver.begin(
            Stream(batch, self.check_columns, self._driver.wakeup.wake, self._in_process)
        )

    def idle(self, lacks: Set[str]) -> frozenset[int]:
        """Indices of the functions that need one of these columns, and so do not score rows that lack them."""
        if not lacks:
            return frozenset()
        needs = [parameters(reward.function)[0] for reward in self.functions]
        return frozenset(number for number, needed in enumerate(needs) if needed & lacks)

    def check_columns(self, names: Iterable[str], nested: Sequence[str] = ()) -> None:
        """Raise UserError when a function needs a column that is not among `names`; it lists the `nested` names, of
        fields inside columns, too."""
        given = set(names)
        for reward in self.functions:
            missing = parameters(reward.function)[0] - given - ALWAYS
            if missing:
                raise UserError(_lacks(reward.name, min(missing), sorted(given), nested))


def _lacks(reward: str, column: str, given: Sequence[str], nested: Sequence[str]) -> str:
    """Says which column a reward lacks, and how to take it from inside another one."""
    says = f"rewards: '{reward}' needs a column '{column}'; there are {', '.join(given)}"
    if not nested:
        return says
    like = next((name for name in nested if name.endswith(f".{column}")), nested[0])
    return f"{says}; and inside columns {', '.join(nested)}, which become columns by columns={{{column}: {like}}}"
