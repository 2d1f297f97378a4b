"""`python killed_run.py POINT WORDS...`: the command line WORDS, killed without notice when it comes to POINT."""

import os
import signal
import sys


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(owner, name, nth=1, when=lambda *given: True):
    """Let the `nth` call of `owner.name` that `when` selects be the end."""
    function, calls = getattr(owner, name), []

    def deadly(*given, **named):
        if when(*given):
            calls.append(given)
            if len(calls) == nth:
                die()
        return function(*given, **named)

    setattr(owner, name, deadly)


def while_weights_load():
    from grpo_jax.models import hf

    kill_before(hf, "load_params")


def in_the_middle_of_a_line():
    """The second step's line of metrics gets to the disk in part."""
    from grpo_jax.runs.loggers import JsonlLogger

    write = JsonlLogger.log

    def half(self, step, metrics):
        if step == 2:
            with open(self._file, "a") as file:
                file.write('{"step": 2, "loss": 0.1')
            die()
        write(self, step, metrics)

    JsonlLogger.log = half


def while_saving(step):
    """All is written, in the temporary folder; the rename that makes it a checkpoint does not come."""
    kill_before(os, "rename", when=lambda source, target: str(target).endswith(f"/checkpoints/{step}"))


def after_the_rollout(nth):
    from grpo_jax.training.advantages import GroupAdvantages

    kill_before(GroupAdvantages, "__call__", nth)


def between_steps(nth):
    """A save may be under way: it is whole afterwards, or not there."""
    from grpo_jax.runs.run import Stopwatch

    kill_before(Stopwatch, "__init__", nth)


def while_exporting():
    """All is written; the rename that makes it `hf` does not come."""
    kill_before(os, "replace", when=lambda source, target: str(target).endswith("/hf"))


def before_a_piece(number):
    """The pieces before it are whole; of this one nothing is there."""
    from grpo_jax.commands import reject

    kill_before(reject, "write_atomically", when=lambda path, _: path.name == f"piece_{number:05d}.jsonl")


def before_the_record_of(nth):
    """A step is done, and nobody has noted it."""
    from grpo_jax.pipelines.record import Record

    kill_before(Record, "add", nth)


POINTS = {
    "after the rollout of step 3": lambda: after_the_rollout(3),
    "before the second piece": lambda: before_a_piece(1),
    "before a step is noted": lambda: before_the_record_of(1),
    "while weights load": while_weights_load,
    "in the middle of a line": in_the_middle_of_a_line,
    "while saving the first checkpoint": lambda: while_saving(2),
    "after the rollout of step 4": lambda: after_the_rollout(4),  # of the fourth step of this process
    "between steps, after a save": lambda: between_steps(3),
    "while exporting": while_exporting,
    "never": lambda: None,
}

if __name__ == "__main__":
    from grpo_jax.cli import main

    POINTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
