"""The reward `code`: does the completion's program pass its row's tests? It runs in a sandbox, and only on request.

The program is the last closed block fenced with ```python (or ```py; without such a block, any fenced one) after the
reasoning. Each of its tests (see `code_tests.py`) runs in an interpreter of its own. docs/code_execution.md says what
protects the machine from the program.
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
"""MiB. With less an interpreter may not start, and every program would fail."""
SHARE_OF_DEADLINE = 0.9
"""The share of a call's deadline that programs may use; the rest is for the answer to reach the pool in time."""
OUT_OF_TIME = "rewards/code/out_of_time"
"""The metric for the share of rows that failed because the call, not the program, ran out of time."""

# Three backticks with another one later in the line are inline code, not a fence. `*+` never backtracks: linear time.
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
    """1.0 if the program passes all tests, else 0.0; with `score=share` the share of tests that it passes.

    None for a row without tests.

    Args:
        sandbox: where programs run: `none`, `local`, `strict` or a URL. See `sandbox/select.py`.
        score: `all` is the default because a share rewards guessing: "-1" or "YES" passes many tests.
        seconds: processor time per test.
        memory: MiB per test.
        reward_timeout: the pool's deadline for this call, in seconds; None for no deadline. In a call for a single row,
            tests not reached within it count as failed.
        log_metric: the pool's; gets 1.0 for each row that ran out of that time, else 0.0.

    A program that is too slow for a test is not run on the later ones: they count as failed.

    Raises:
        UserError: no sandbox is given, or it does not work here.
        SandboxError: the sandbox could not run a program. The pool retries, then counts the row as an error.
        TimeoutError: the call ran out of time with several rows; the pool then retries each row by itself.
        ValueError: the tests of a row have an unknown shape, or an option has an unusable value.
    """
    if sandbox == "none":
        raise UserError(UNASKED)
    if memory < LEAST_MEMORY:
        raise ValueError(
            f"memory={memory} MiB: Python does not start in so little; use at least {LEAST_MEMORY}"
        )
    limits = Limits(cpu=seconds, memory=memory * MIB)
    tester = ProgramTester(
        open_sandbox(sandbox),
        limits,
        whole=score == "all",
        deadline=_deadline(reward_timeout),
        alone=len(completions) == 1,
    )
    known = {name: columns[name] for name in COLUMNS if name in columns}
    scores = [
        tester.score(program_of(text_of(completion), prefill_of(prompt)), read_tests(_row(known, i)))
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    if log_metric:
        for _ in scores:
            log_metric(OUT_OF_TIME, float(tester.late))
    return scores


def _deadline(seconds: float | None) -> float:
    return time.monotonic() + SHARE_OF_DEADLINE * seconds if seconds else float("inf")


def _row(columns: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in columns.items()}


class ProgramTester:
    """Runs programs on tests until a deadline (time.monotonic).

    Args:
        whole: score 1.0 or 0.0, and stop at a program's first failure.
        alone: there is a single row; tests that it does not reach in time count as failed.

    `late` becomes true for such a row. It fails although its program may be right: a sleeping program cannot be told
    from a busy machine, and if it scored nothing instead, a wrong program would gain by being slow.
    """

    def __init__(self, run: Run, limits: Limits, *, whole: bool, deadline: float, alone: bool):
        self.run, self.limits, self.whole, self.deadline, self.alone = run, limits, whole, deadline, alone
        self.late = False

    def score(self, program: str | None, tests: Sequence[Test]) -> float | None:
        """The score of one row: its program on its tests."""
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
    """The last program of a completion; None if the reasoning has no end, or there is no closed block."""
    _, end, answer = text.rpartition("</think>")
    reasons = "<think>" in text or prefill.rstrip().endswith("<think>")
    if not end and reasons:
        return None
    blocks = fenced(answer)
    labelled = [inside for label, inside in blocks if label in LABELS]
    unlabelled = [inside for _, inside in blocks]
    return next(iter((labelled or unlabelled)[-1:]), None)


def fenced(text: str) -> list[tuple[str, str]]:
    """(label, content) of every closed block between fences of three or more backticks, in order, as in CommonMark.

    The label is the first word after the opening fence, in lower case: "python" of "```Python title=a.py". The
    indentation of an indented fence (in a list) is removed from the lines inside.
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
