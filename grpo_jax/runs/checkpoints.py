"""Checkpoints: the train state in Orbax, a folder a step, checked value by value when it comes back.

Orbax commits a step by one rename, so a kill leaves a step whole or not at all. It keeps no checksum of the
values, though: a flipped byte comes back as another number. So each step carries notes: the shape, dtype
and digest of every tensor, taken on the devices when the step was saved. The digest does not depend on how a
tensor is sharded. A step whose values do not match its notes counts as damaged, and the step before
it is used.
"""

import copy
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.runs.digest import digest
from grpo_jax.runs.files import is_local

_STATE, _NOTES = "state", "notes"  # the two items of a step's folder
_SLICED = 2**22  # bytes of a tensor from which devices that hold it write a slice each


class _DamagedError(Exception):
    """This step cannot be restored; another may."""


def _keep_small_tensors_whole() -> None:
    """Let one device write a small tensor that several hold: to slice it, each shape is a program to compile for every
    device. Orbax has one table of handlers for the whole process."""
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICED)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def _say(sentence: str) -> None:
    if jax.process_index() == 0:
        print(sentence, file=sys.stderr, flush=True)


class Checkpoints:
    """The steps kept in `folder` (local or a bucket). Every process of a run makes the same calls.

    Args:
        keep: how many of the newest steps to keep; 0 keeps all. With 1 there is no step to fall back to.
        read_only: delete nothing on opening, because another process may be saving.
        say: called with a sentence about each damaged step.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int = 3,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = _say,
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # we raise or report what Orbax would log
        _keep_small_tensors_whole()
        path = epath.Path(folder)
        self._folder = path.absolute() if is_local(path) else path
        self._read_only = read_only
        self._say = say
        self.spared: int | None = None  # a step that is kept whatever its age
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Newest(self, keep),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,  # left by a kill during a save
                async_options=ocp.AsyncOptions(timeout_secs=3600),  # a large state on a slow disk
            ),
        )

    def steps(self) -> list[int]:
        """The committed steps, oldest first, damaged ones included: only `restore` finds damage."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> None:
        """Write `state`, a pytree of arrays, and `extra`, small JSON, as `step`.

        Returns once the values are copied off the devices (on CPU: held, so that JAX copies instead of
        donating them): the caller may donate `state` at once. The files are written in the background and
        appear as a whole. An earlier save is waited for first, and its error raised here. Steps from `step`
        on that are already there are removed: they are damaged, or of a history that this run has left.
        """
        if self._read_only:
            raise RuntimeError("these checkpoints were opened read_only")
        self.wait()
        for late in [found for found in self.steps() if found >= step]:
            self._manager.delete(late)
        # A copy: the files are written in the background, and the caller may change `extra` meanwhile.
        notes = {"tensors": _describe(state), "extra": copy.deepcopy(extra or {})}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardSave(state),
                    _NOTES: ocp.args.JsonSave({**notes, "sha256": _sha256(notes)}),
                }
            ),
            force=True,  # whether to save is the caller's decision
        )

    def restore(
        self, abstract: Any, step: int | None = None, *, partial: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest intact step, as `(step, state, extra)`; None when nothing was saved yet.

        Args:
            abstract: `state` as `jax.ShapeDtypeStruct`s with the shardings wanted, on any mesh; or arrays.
            step: restore this step only.
            partial: `abstract` names only some of the saved tensors; the others are not read.
        Raises:
            UserError: no such step; every step is damaged; the tensors saved are not those of `abstract`.
        """
        steps = self.steps()[::-1]
        if step is not None:
            if step not in steps:
                raise UserError(f"step: {step} is not in {self._folder}; it has {steps[::-1] or 'none'}")
            steps = [step]
        for candidate, before in zip(steps, steps[1:] + [None]):
            try:
                return candidate, *self._restore(candidate, abstract, partial)
            except _DamagedError as fault:
                place = self._folder / str(candidate)
                then = "" if before is None else f"; trying step {before}"
                self._say(f"checkpoint {place} is damaged: {fault}{then}")
        if steps:
            raise UserError(
                f"{self._folder}: nothing to restore, as {_listed(steps)} damaged; "
                "bring a checkpoint back from a copy, or give another output_dir to start a new run"
            )
        return None

    def wait(self) -> None:
        """Wait until the save under way is on disk; raises its error."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the save under way, then stop the writing threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restore(self, step: int, abstract: Any, partial: bool) -> tuple[Any, dict[str, Any]]:
        """State and extra of `step`. All processes agree whether it is damaged, so that all restore the same step."""
        fault: _DamagedError | None = None
        try:
            state, notes = self._read(step, abstract, partial)
        except _DamagedError as caught:
            fault = caught
        if not _every_process(fault is None):
            raise fault or _DamagedError("another process cannot read it")
        now = _describe(state)
        wrong = [name for name, found in now.items() if found != notes["tensors"][name]]
        if wrong:
            raise _DamagedError(f"the values of {wrong[0]} are not those that were saved")
        return state, notes["extra"]

    def _read(self, step: int, abstract: Any, partial: bool) -> tuple[Any, dict[str, Any]]:
        """What this process reads of `step`: its shards of the state, and the notes.

        It uses Orbax's handlers, not its manager: the manager waits for the other processes after reading, so a
        process that meets a damaged file would leave them waiting.
        """
        _hush_abandoned_reads()
        place = self._folder / str(step)
        with _reading():
            notes = ocp.JsonCheckpointHandler().restore(place / _NOTES)
            if notes.pop("sha256") != _sha256(notes):
                raise _DamagedError("its notes are not those that were saved")
        wanted = _shapes(abstract)
        saved = notes["tensors"]
        _check_same_tensors(place, {n: saved[n] for n in wanted if n in saved} if partial else saved, wanted)
        with _reading():
            return _read_state(place / _STATE, abstract), notes


class _Newest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest steps (all, for 0), and the one that is spared."""

    def __init__(self, checkpoints: Checkpoints, keep: int):
        self._checkpoints, self._keep = checkpoints, keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = len(checkpoints) - self._keep if self._keep else 0
        spared = self._checkpoints.spared
        return [place >= newest or found.step == spared for place, found in enumerate(checkpoints)]


def _read_state(place: epath.Path, abstract: Any) -> Any:
    """The tensors of `abstract`, which are there. Its fields that are None need not be: earlier versions had fewer."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(place, args=args)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn any error while reading into `_DamagedError`, except running out of memory."""
    try:
        yield
    except (_DamagedError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as fault:  # damage takes many shapes: ValueError, KeyError, OSError, a failed decode...
        text = " ".join(str(fault).split()) or type(fault).__name__
        raise _DamagedError(text.split(". ")[0][:160]) from fault


@functools.cache
def _hush_abandoned_reads() -> None:
    """When one read fails, Orbax closes its event loop under the others, and each prints a traceback.

    These are hundreds of lines, some much later. They add nothing to the sentence about the damaged step, and
    would hide it.
    """
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())


def _listed(steps: list[int]) -> str:
    return f"step {steps[0]} is" if len(steps) == 1 else f"steps {sorted(steps)} are all"


def _every_process(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _sha256(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _shapes(tree: Any) -> dict[str, tuple[list[int], str]]:
    """Tensor name -> (shape, dtype)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (list(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _describe(state: Any) -> dict[str, list[Any]]:
    """Tensor name -> [shape, dtype, digest], as JSON gives it back."""
    # One at a time: CPU devices deadlock when several programs with collectives run at once.
    digests = [digest(leaf) for leaf in jax.tree.leaves(state)]
    return {name: [*shape, found] for (name, shape), found in zip(_shapes(state).items(), digests)}


def _check_same_tensors(
    place: epath.Path, saved: dict[str, list[Any]], wanted: dict[str, tuple[list[int], str]]
) -> None:
    for name in {**saved, **wanted}:
        there = f"{saved[name][1]}{saved[name][0]}" if name in saved else "nothing"
        here = f"{wanted[name][1]}{wanted[name][0]}" if name in wanted else "nothing"
        if there != here:
            raise UserError(
                f"{place}: saved by another model or optimizer: {name} is {there} there and {here} here. "
                "Give another output_dir, or the model and settings of that run"
            )
