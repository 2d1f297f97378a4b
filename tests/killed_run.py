"""A process that imports what the verbs need, and forks for each command line: importing takes longer than most of
these run. `python killed_run.py` reads requests, a line of JSON each, and answers each with a line (fixture `command`):

- `{"words", "point", "cwd", "environment", "out", "err"}` starts the command line `words`, which is killed without
  notice when it comes to `point`; the answer is its process id;
- `{"poll": id}`: the exit status of that process, as subprocess.Popen gives it; null while it runs.
"""

import gc
import importlib
import json
import os
import signal
import sys

VERBS = ("train", "sft", "reject", "evaluate", "generate", "export", "pipeline")


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
    """The fifth step's line of metrics gets to the disk in part."""
    from grpo_jax.runs.loggers import JsonlLogger

    write = JsonlLogger.log

    def half(self, step, metrics):
        if step == 5:
            with open(self._file, "a") as file:
                file.write('{"step": 5, "loss": 0.1')
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
    """All that these steps changed is gone, as no save was due."""
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
    "while saving the first checkpoint": lambda: while_saving(3),
    "between steps": lambda: between_steps(2),
    "while exporting": while_exporting,
    "never": lambda: None,
}


def answer(value):
    print(json.dumps(value), flush=True)


def serve():
    """Answer requests until there are no more. In each process that is forked: return its request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer(os.waitstatus_to_exitcode(status) if pid else None)
        elif pid := os.fork():
            answer(pid)
        else:
            return request
    sys.exit()


def become(request):
    """Make this process one that was started as requested."""
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    POINTS[request["point"]]()


if __name__ == "__main__":
    from transformers import AutoTokenizer  # noqa: F401

    from grpo_jax.cli import main

    for name in (*(f"commands.{verb}" for verb in VERBS), "trainer", "training.sft_trainer"):
        importlib.import_module(f"grpo_jax.{name}")
    gc.freeze()
    become(request := serve())
    sys.exit(main(request["words"]))
