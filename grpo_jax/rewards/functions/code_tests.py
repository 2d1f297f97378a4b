r"""Tests of programs: reads them from the columns of published data sets, and makes the scripts that run them.

    verification_info   {"test_cases": [{"input", "output", "fn_name"?}, ...]}                    (Open-R1, SYNTHETIC-1)
    input_output        {"inputs": [...], "outputs": [...], "fn_name"?}                           (APPS, TACO)
    test_cases          a list as in verification_info, or a mapping as input_output's
    public_test_cases, private_test_cases   [{"input", "output", "testtype"}, ...], `metadata`    (LiveCodeBench)
    test_list           ["assert f(1) == 2", ...], with test_setup_code and test_imports          (MBPP)
    test, entry_point   "def check(candidate): ..."                                               (HumanEval)

Each may be JSON text. What a program must print or return never enters the sandbox: it is compared outside.
Assertions, however, run in the same interpreter as the program.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from grpo_jax.sandbox.outcome import Outcome

COLUMNS = (
    "verification_info",
    "input_output",
    "test_cases",
    "public_test_cases",
    "private_test_cases",
    "metadata",
    "test_list",
    "test_setup_code",
    "test_imports",
    "test",
    "entry_point",
)


@dataclass(frozen=True)
class OutputTest:
    """The program reads `stdin` and must print `expected`."""

    stdin: str
    expected: str

    def script(self, program: str) -> tuple[str, str]:
        """(code, stdin) for the sandbox."""
        return program, self.stdin

    def passed(self, outcome: Outcome, script: tuple[str, str]) -> bool:
        return outcome.ok and lines(outcome.stdout) == lines(self.expected)


@dataclass(frozen=True)
class ReturnTest:
    """The function `name`, or the method of a class `Solution`, must return `expected` for `arguments`.

    wrapped: `expected` may be a list with the value as its only element, as in APPS.
    """

    name: str
    arguments: list[Any]
    expected: Any
    wrapped: bool = False

    def script(self, program: str) -> tuple[str, str]:
        call = _CALL.format(name=self.name, arguments=json.dumps(self.arguments))
        return _script(program, call)

    def passed(self, outcome: Outcome, script: tuple[str, str]) -> bool:
        answer = _answer(outcome, script)
        if answer is None:
            return False
        alone = self.wrapped and isinstance(self.expected, list) and len(self.expected) == 1
        try:
            value = json.loads(answer)
            return same(value, self.expected) or (alone and same(value, self.expected[0]))
        except (ValueError, RecursionError):  # the program printed something else in its place
            return False


@dataclass(frozen=True)
class AssertionTest:
    """The code `check` runs after the program, in its namespace, and must not raise."""

    check: str

    def script(self, program: str) -> tuple[str, str]:
        return _script(program, _ASSERT.format(check=self.check))

    def passed(self, outcome: Outcome, script: tuple[str, str]) -> bool:
        return _answer(outcome, script) is not None


Test = OutputTest | ReturnTest | AssertionTest


# The program is a module of its own, so that its `if __name__ == "__main__"` block does not run. A program that exits
# before its tests has not passed them: only the last line prints the secret word. The word is read from stdin before
# the program runs, and the functions used afterwards are bound before, so `builtins.exec = print` changes nothing.
# Still they share an interpreter, and a program that inspects its frames finds the word.
_SCRIPT = """\
import builtins, json, os, sys, types

def judge(run=exec, compiled=compile, get=getattr, read=json.loads, written=json.dumps, say=print):
    out = os.fdopen(os.dup(1), "w")
    word = sys.stdin.read().strip()
    module = sys.modules["solution"] = types.ModuleType("solution")
    space = module.__dict__
    run({names!r}, space)
    for name in [name for name in dir(builtins) if name[0] != "_"]:
        space.pop(name, None)
    run(compiled({program!r}, "solution.py", "exec"), space)
{then}
    say("\\n" + word + written(answer), file=out, flush=True)

judge()
"""
_NAMES = "\n".join(
    f"from {module} import *"
    for module in (
        "typing",
        "collections",
        "math",
        "itertools",
        "functools",
        "heapq",
        "bisect",
        "string",
        "re",
    )
)
_CALL = """\
owner = space["Solution"]() if "Solution" in space else module
answer = get(owner, {name!r})(*read({arguments!r}))"""
_ASSERT = """\
run(compiled({check!r}, "tests.py", "exec"), space)
answer = 0"""


def _script(program: str, then: str) -> tuple[str, str]:
    script = _SCRIPT.format(names=_NAMES, program=program, then=indent(then, "    "))
    return script, secrets.token_hex(16)


def _answer(outcome: Outcome, script: tuple[str, str]) -> str | None:
    """What follows the secret word in its line; None if the script did not reach its end."""
    _, word, rest = outcome.stdout.rpartition(script[1])
    return rest.partition("\n")[0] if outcome.ok and word else None


def lines(text: str) -> list[str]:
    """The lines of printed text for comparison: without trailing whitespace and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def same(value: Any, expected: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but true does not equal 1."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in value)
    return bool(value == expected)


# ---- from columns ----


def read_tests(row: Mapping[str, Any]) -> list[Test]:
    """The tests of one row, from those of `COLUMNS` that it has; an empty list if they are empty.

    Raises:
        ValueError: a column has an unknown shape.
    """
    given = {name: value for name, value in row.items() if value is not None and value != ""}
    found: list[Test] = []
    for name in ("verification_info", "input_output", "test_cases"):
        if name in given and not found:
            found = _pairs(name, _parsed(name, given[name]))
    for name in ("public_test_cases", "private_test_cases"):
        if name in given:
            found += _cases(name, _parsed(name, given[name]), _function(given), of_lines=True)
    if "test_list" in given and not found:
        found = _assertions(given)
    if "test" in given and "entry_point" in given and not found:
        found = [AssertionTest(f"{given['test']}\ncheck({given['entry_point']})")]
    return found


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        packed = (
            " (LiveCodeBench packs them with pickle; unpack them first)" if name.startswith("private") else ""
        )
        raise ValueError(f"{name} is no JSON{packed}: {value[:60]!r}") from None


def _pairs(name: str, value: Any) -> list[Test]:
    if isinstance(value, Mapping) and value.get("test_cases") is not None:
        value = _parsed(name, value["test_cases"])
    if isinstance(value, list | tuple):
        return _cases(name, value, None)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} holds {value!r:.60}; must be a mapping or a list of mappings")
    if not ({"inputs", "outputs"} <= value.keys()):
        if value:
            raise ValueError(f"{name} has {sorted(value)}; must have inputs and outputs, or test_cases")
        return []
    inputs, outputs = value["inputs"], value["outputs"]
    if len(inputs) != len(outputs):
        raise ValueError(f"{name} has {len(inputs)} inputs and {len(outputs)} outputs")
    function = value.get("fn_name")
    return [_test(name, given, expected, function) for given, expected in zip(inputs, outputs, strict=True)]


def _cases(name: str, cases: Any, function: str | None, of_lines: bool = False) -> list[Test]:
    """Tests from a list of mappings with input and output. With `of_lines`, arguments are JSON, one per line."""
    found: list[Test] = []
    for case in cases:
        if not isinstance(case, Mapping) or not ({"input", "output"} <= case.keys()):
            raise ValueError(f"{name} holds {case!r:.60}; must be mappings with input and output")
        called = case.get("fn_name") or (function if case.get("testtype") == "functional" else None)
        if of_lines and called:
            arguments = [json.loads(line) for line in case["input"].splitlines() if line.strip()]
            found.append(ReturnTest(called, arguments, json.loads(case["output"])))
        else:
            found.append(_test(name, case["input"], case["output"], called))
    return found


def _test(name: str, given: Any, expected: Any, function: str | None) -> Test:
    if not function:
        return OutputTest(_joined(given), _joined(expected))
    arguments = _parsed(name, given) if isinstance(given, str) else given
    if not isinstance(arguments, list | tuple):
        raise ValueError(f"{name}: the arguments of {function} are {arguments!r:.60}; must be a list")
    # Converted as JSON would convert them, because what the sandbox returns is JSON.
    return ReturnTest(function, list(arguments), json.loads(json.dumps(expected)), wrapped=True)


def _joined(text: Any) -> str:
    """Text that is given as a string or as a list of lines."""
    return "\n".join(map(str, text)) if isinstance(text, list | tuple) else str(text)


def _function(given: Mapping[str, Any]) -> str | None:
    metadata = given.get("metadata")
    parsed = _parsed("metadata", metadata) if metadata else {}
    return parsed.get("func_name") if isinstance(parsed, Mapping) else None


def _assertions(given: Mapping[str, Any]) -> list[Test]:
    """One test per assertion, with the imports and the setup code before it."""
    tests = _parsed("test_list", given["test_list"])
    if not isinstance(tests, Sequence) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"test_list holds {tests!r:.60}; must be a list of texts")
    before = given.get("test_imports") or []
    setup = [*([before] if isinstance(before, str) else before), given.get("test_setup_code") or ""]
    return [AssertionTest("\n".join([*filter(None, setup), test])) for test in tests]
