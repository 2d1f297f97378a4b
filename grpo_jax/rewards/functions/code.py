"""Code: does the program that the completion ends with pass its row's tests? It runs, in a sandbox, and only if asked.

The program is the last closed block fenced with ```python (or ```py; any fence where there is none such) behind the
reasoning. Each of its tests (see `code_tests.py`) gets an interpreter of its own. docs/code_execution.md says what
keeps such a program from doing harm.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.code_tests import COLUMNS, Test, read_tests
from grpo_jax.rewards.functions.text import prefill_of, text_of
from grpo_jax.sandbox.outcome import MIB, Limits
from grpo_jax.sandbox.select import Run, open_sandbox

LABELS = {"python", "python3", "py"}
LEAST_MEMORY = 64
"""MiB; with less an interpreter may not start, and every program would fail."""
SHARE_OF_DEADLINE = 0.9
"""Of a call's deadline, what programs may use; the rest is for the pool to hear of it in time."""
OUT_OF_TIME = "rewards/code/out_of_time"
"""The metric for the share of rows that failed for want of the call's time, not of a program's own."""

# With a backtick behind them, three of them begin code within a line. What is read is not given back (`*+`): linear.
_FENCE = re.compile(r"(?P<indent>\s*+)(?P<ticks>`{3,}+)\s*+(?P<label>[^\s`]*+)[^`]*+")

UNASKED = (
    "rewards: 'code' runs programs that the model wrote, on this machine, and so does nothing unless asked: write "
    "code:sandbox=strict (here, refused where a program could reach files, the network or other processes), "
    "code:sandbox=local (here, with what protection there is) or code:sandbox=URL (elsewhere); "
    "see docs/code_execution.md"
)


def code(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    sandbox: str = "none",
    score: Literal["all", "share"] = "all",
    seconds: float = 4.0,
    memory: int = 512,
    reward_timeout: float | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the program passes all tests, else 0.0; with `score=share` the share that it passes.

    None where a row has no tests.

    Args:
        sandbox: where programs run: `none`, `local`, `strict` or a URL. See `sandbox.choose`.
        score: `all` is the default because a share pays for guessing: "-1" or "YES" passes many a test.
        seconds: of processor time, a test.
        memory: MiB, a test.
        reward_timeout: the pool's own deadline for this call, in seconds (None: none). A row that is judged alone has
            it for all its tests, and has failed those that it did not come to.
        log_metric: the pool's own; hears of each row whether it ran out of that time.

    A program that is too slow for a test is not run on those after it: they count as failed.

    Raises:
        UserError: no sandbox, or not one that works here.
        SandboxError: the sandbox could not run a program. The pool tries once more and counts the row as an error.
        TimeoutError: not all rows were judged in time; the pool then gives each its own.
        ValueError: a row's tests are in no shape that is known; an option has no use.
    """
    if sandbox == "none":
        raise UserError(UNASKED)
    if memory < LEAST_MEMORY:
        raise ValueError(f"memory={memory} MiB: Python does not start in it; use {LEAST_MEMORY} at least")
    limits = Limits(cpu=seconds, memory=memory * MIB)
    judge = Judge(
        open_sandbox(sandbox), limits, score == "all", _deadline(reward_timeout), len(completions) == 1
    )
    known = {name: columns[name] for name in COLUMNS if name in columns}
    scores = [
        judge.score(program_of(text_of(completion), prefill_of(prompt)), read_tests(_row(known, i)))
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    if log_metric:
        for _ in scores:
            log_metric(OUT_OF_TIME, float(judge.late))
    return scores


def _deadline(seconds: float | None) -> float:
    return time.monotonic() + SHARE_OF_DEADLINE * seconds if seconds else float("inf")


def _row(columns: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in columns.items()}


class Judge:
    """Runs programs on tests until a deadline (time.monotonic).

    Args:
        whole: stop a program at its first failure.
        alone: there is one row, which has failed what it does not come to in time.

    `late` becomes true with such a row. It fails although its program may be right: a program that sleeps and a machine
    that is busy look alike from here, and with no verdict in its place a wrong program had better dawdle than fail.
    """

    def __init__(self, run: Run, limits: Limits, whole: bool, deadline: float, alone: bool):
        self.run, self.limits, self.whole, self.deadline, self.alone = run, limits, whole, deadline, alone
        self.late = False

    def score(self, program: str | None, tests: Sequence[Test]) -> float | None:
        """One row's."""
        if not tests:
            return None
        if program is None:
            return 0.0
        passed = 0
        for test in tests:
            success, slow = self._try(program, test)
            passed += success
            if slow or (self.whole and not success):
                break
        return float(passed == len(tests)) if self.whole else passed / len(tests)

    def _try(self, program: str, test: Test) -> tuple[bool, bool]:
        """(whether it passes, whether it was too slow)."""
        left = self.deadline - time.monotonic()
        script = test.script(program)
        if left > 0:
            outcome = self.run(*script, replace(self.limits, wall=min(left, self.limits.patience)))
            if outcome.ended != "wall" or left >= self.limits.patience:
                return test.passed(outcome, script), outcome.ended in ("cpu", "wall")
        if not self.alone:
            raise TimeoutError("the rows of a prompt took longer than reward_timeout")
        self.late = True
        return False, True


def program_of(text: str, prefill: str = "") -> str | None:
    """The program that a completion ends with, or None: it still reasons, or has no closed block."""
    _, end, answer = text.rpartition("</think>")
    reasons = "<think>" in text or prefill.rstrip().endswith("<think>")
    if not end and reasons:
        return None
    blocks = fenced(answer)
    labelled = [inside for label, inside in blocks if label in LABELS]
    unlabelled = [inside for _, inside in blocks]
    return next(iter((labelled or unlabelled)[-1:]), None)


def fenced(text: str) -> list[tuple[str, str]]:
    """(label, inside) of every closed block between fences of three backticks or more, in order, as CommonMark has it.

    The label is the first word of what follows the opening fence, in lower case: "python" of "```Python title=a.py".
    A fence that is indented, in a list, takes as much indentation as it has off the lines inside.
    """
    blocks, opened, inside = [], None, list[str]()
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            opened, inside = fence, []
        elif fence and len(fence["ticks"]) >= len(opened["ticks"]) and not fence["label"]:
            blocks.append((opened["label"].lower(), "\n".join(inside) + "\n"))
            opened = None
        else:
            width = len(opened["indent"])
            inside.append(line[:width].lstrip() + line[width:])
    return blocks
