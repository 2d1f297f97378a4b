"""Runs reward functions on a step's completions, in processes, each call under a deadline.

A unit of work is one function on one prompt's group of rows. Units of plain functions go one by one to whichever
worker is free; those of async functions all go to one worker, where they wait side by side.

A unit that fails (raises, takes too long, returns a wrong number of scores, takes its process down) is tried
once more row by row, so that a bad row costs only itself; rows that fail again score NaN and are counted. A
process that passes its deadline is killed with all it started, and replaced; an async function that waits too
long is only cancelled. A group that hangs on every row thus costs 1 + G deadlines, shared by the workers.

A thread does all this, so that rewards are computed while the caller still samples: `RewardPool.stream`.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.verdicts import worst_of
from grpo_jax.rewards.load import Reward, load_reward, named_apart, parameters
from grpo_jax.rewards.pool.batch import Batch, Scores
from grpo_jax.rewards.pool.logs import ALWAYS
from grpo_jax.rewards.pool.stream import Driver, Stream
from grpo_jax.rewards.pool.workers import Crew


class RewardPool:
    """Worker processes for a list of rewards; started with the first rows, ended by `close` (or `with`).

    Args:
        functions: rewards, or anything that `load_reward` takes. Their names must differ; built-in functions that
            are there twice carry their options in theirs.
        workers: most processes at a time; 0 means the number of cores, at most 8.
        timeout: seconds a unit may take, from when a worker begins with it. An async function begins at once with
            every group that is there: it must have answered each within this time.
        on_error: "count" scores a failing row NaN; "stop" raises `UserError` and names the row.

    `models` are the reward models among them, index -> folder or hub id: the pool has their names only.
    `messages` keeps by function and kind of fault ("errors", "timeouts", "nans") the first sentence seen.
    A function given as an object that cannot be pickled runs in a thread of this process, with a warning.
    """

    def __init__(
        self,
        functions: Iterable[Any],
        *,
        workers: int = 0,
        timeout: float = 10.0,
        on_error: Literal["count", "stop"] = "count",
    ):
        self.functions: list[Reward] = named_apart([load_reward(f) for f in functions])
        self.names = [f.name for f in self.functions]
        self.models = {number: f.model for number, f in enumerate(self.functions) if f.model}
        self._worst = [worst_of(f.function) for f in self.functions]
        self.on_error = on_error
        self.messages: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self._crew = Crew(self.functions, workers, timeout)
        self._driver = Driver(self._crew)
        # A pool that is forgotten leaves nothing behind; when the interpreter ends, its threads and workers do too.
        weakref.finalize(self, self._driver.close).atexit = False

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, and a stream that is open; a later `score` or `stream` would start new ones."""
        self._driver.close()

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
            trainer_state: any object that can be pickled; the functions get a copy. See `logs.py`.

        Raises:
            UserError: a function needs a column that is not there, cannot be loaded by a worker, or
                (on_error="stop") failed on a row.
            ValueError: the lengths differ.
        """
        with self.stream(len(completions), trainer_state) as stream:
            stream.add(0, prompts, completions, columns, completion_ids)
            return stream.finish()

    def stream(self, rows: int, trainer_state: Any = None) -> Stream:
        """What `score` does for `rows` rows that come bit by bit, beginning with the first; use it with `with`.

        Raises:
            UserError: the state cannot be sent to a worker.
            RuntimeError: another stream is open; a pool works for one at a time.
        """
        stop = self.on_error == "stop"
        batch = Batch(self.names, rows, self.messages, stop, self._crew.patient, trainer_state, self._worst)
        return self._driver.begin(Stream(batch, self.check_columns, self._driver.bell.ring))

    def idle(self, lacks: Set[str]) -> frozenset[int]:
        """The functions (indices) that need one of these columns, and so are not asked about rows that lack them."""
        if not lacks:
            return frozenset()
        needs = [parameters(reward.function)[0] for reward in self.functions]
        return frozenset(number for number, needed in enumerate(needs) if needed & lacks)

    def check_columns(self, names: Iterable[str]) -> None:
        """UserError when a function needs an argument that is not among `names`."""
        given = set(names)
        for reward in self.functions:
            missing = parameters(reward.function)[0] - given - ALWAYS
            if missing:
                has = ", ".join(sorted(given))
                raise UserError(f"rewards: '{reward.name}' needs a column '{min(missing)}'; there are {has}")
