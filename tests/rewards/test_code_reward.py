"""The reward `code`: programs are found, run on their row's tests, and compared exactly; and only if asked."""

import json
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax import recipes
from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool, load_reward
from grpo_jax.rewards.functions.code import ProgramTester, code, fenced, program_of
from grpo_jax.rewards.functions.code_tests import (
    AssertionTest,
    OutputTest,
    ReturnTest,
    lines,
    read_tests,
    same,
)
from grpo_jax.rewards.functions.open_r1 import code_format
from grpo_jax.sandbox import Limits, run

INF = float("inf")


def fence(program, label="python"):
    return f"So:\n```{label}\n{program}\n```\n"


def score(program, share=False, **row):
    completions = [fence(program)]
    columns = {name: [value] for name, value in row.items()}
    mode = "share" if share else "all"
    return code(["p"], completions, sandbox="local", score=mode, seconds=2, **columns)[0]


# ---- the sandbox must be chosen ----


def test_programs_run_only_where_a_sandbox_is_chosen():
    for asked in ("code", "code:score=share", "code:sandbox=none"):
        with pytest.raises(UserError, match=r"runs programs that the model wrote.*sandbox=strict"):
            load_reward(asked)
    with pytest.raises(UserError, match="code:sandbox=strict"):
        RewardPool(["code"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("sandbox=here", "sandbox = here: write local, strict, or a URL"),
        ("sandbox=local,seconds=0", "cpu = 0.0: a limit must be above 0"),
        ("sandbox=local,memory=10", "memory=10 MiB: Python does not start"),
        ("sandbox=local,score=some", "must be one of all, share"),
    ],
)
def test_invalid_options_are_refused_before_any_row(options, why):
    with pytest.raises(UserError, match=why):
        load_reward(f"code:{options}")


def test_a_column_cannot_choose_the_sandbox():
    with pytest.raises(UserError, match="unless asked"):
        load_reward("code")
    function = load_reward("code:sandbox=local").function
    row = {"test_list": [["assert f() == 1"]], "sandbox": ["http://127.0.0.1:9/"], "seconds": ["x"]}
    assert function(["p"], [fence("f = lambda: 1")], **row) == [1.0]


# ---- the program ----


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```\nand\n```python\nb\n```", "b\n"),
        ("```python\na\n```\noutput:\n```\n7\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```Python3\na\n```", "a\n"),
        ("```python\na\n\nb\n```  ", "a\n\nb\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>```python\na\n```</think> no block", None),
        ("<think>```python\na\n```", None),
        ("```python\na", None),
        ("a", None),
        ("", None),
        ("</think></think>\n```py\na\n```", "a\n"),
        ("```python\na\n```\n```python title=main.py\nb\n```", "b\n"),
        ("```PY {.numbered}\na\n```\n```\nb\n```", "a\n"),
        ("```python print(1)``` prints 1\n```python\na\n```", "a\n"),  # the first is code within a line
        ("1. So:\n   ```python\n   if a:\n       b\n\n  c\n   ```", "if a:\n    b\n\nc\n"),
        ("\t```python\n\ta\n\t\tb\n\t```", "a\n\tb\n"),
        ("```python\n  a\n  ```", "  a\n"),
        ("```python\r\na\r\n```\r\n", "a\r\n"),
    ],
)
def test_the_program_is_the_last_closed_block_after_the_reasoning(text, program):
    assert program_of(text) == program


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(5)\n```\nNo:\n```python title=main.py\nprint(6)\n```",
        "1. Here:\n   ```python\n   print(6)\n   ```",
        "````python\nprint(6)\n````",
    ],
)
def test_code_finds_every_program_that_code_format_accepts(text):
    assert code_format([text]) == [1.0]
    assert code(["p"], [text], sandbox="local", input_output=[{"inputs": [""], "outputs": ["6"]}]) == [1.0]


def test_reasoning_that_the_prompt_opened_holds_no_program():
    block = "```python\na\n```"
    assert program_of(block, prefill="x<think>\n") is None
    assert program_of("hm</think>" + block, prefill="<think>\n") == "a\n"


@given(st.lists(st.text("ab`\n ", max_size=20), max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_blocks_come_back_as_they_were_fenced(insides):
    insides = [f"x{inside}" for inside in insides]
    longest = "`" * (3 + max((inside.count("`") for inside in insides), default=0))
    text = "\n".join(f"{longest}python\n{inside}\n{longest}" for inside in insides)
    assert fenced(text) == [("python", inside + "\n") for inside in insides]


def test_a_hundred_thousand_fences_are_read_within_two_seconds():
    begun = time.monotonic()
    assert program_of("```python\n" * 100_000) is None
    assert program_of(f"```{'a' * 100_000}`\n" + " " * 100_000 + f"x\n```{' ' * 100_000}`") is None
    assert time.monotonic() - begun < 2


# ---- comparing outputs and values ----


@pytest.mark.parametrize(
    ("printed", "expected", "equal"),
    [
        ("1 2\n", "1 2", True),
        ("1 2  \n3\t\n\n\n", "1 2\n3", True),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("1\n", "1\n2\n", False),
        ("1\n2\n", "1\n", False),
        ("", "1\n", False),
        ("1\n\n2", "1\n2", False),
        (" 1", "1", False),
        ("\n1", "1", False),
        ("1.0", "1", False),
        ("yes", "YES", False),
        ("", "", True),
    ],
)
def test_printed_text_is_compared_line_by_line(printed, expected, equal):
    assert (lines(printed) == lines(expected)) is equal


@given(st.lists(st.text("ab ", max_size=3), min_size=1, max_size=5), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_prefix_of_the_right_lines_fails(right, data):
    right = [*right, "end"]
    cut = data.draw(st.integers(0, len(right) - 1))
    assert lines("\n".join(right[:cut])) != lines("\n".join(right))


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1.0, True), (True, 1, False), (0, False, False), (True, True, True), ([1, 2], [1], False),
        ([1], [1, 2], False), ([1, [2]], [1, [2]], True), ({"a": 1}, {"a": 1, "b": 2}, False), ("1", 1, False),
        (None, None, True), ([], None, False),
    ],
)  # fmt: skip
def test_returned_values_are_compared_whole(value, expected, equal):
    assert same(value, expected) is equal


# ---- shapes of tests ----

PAIRS = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
CASES = [{"input": "1\n", "output": "2\n", "type": "stdin_stdout"}, {"input": "2\n", "output": "4\n"}]
DOUBLED = [OutputTest("1\n", "2\n"), OutputTest("2\n", "4\n")]


@pytest.mark.parametrize(
    "row",
    [
        {"input_output": PAIRS},
        {"input_output": json.dumps(PAIRS)},
        {"input_output": {"inputs": [["1", ""], ["2", ""]], "outputs": [["2", ""], ["4", ""]]}},
        {"verification_info": {"language": "python", "test_cases": CASES}},
        {"verification_info": json.dumps({"test_cases": CASES})},
        {"verification_info": {"test_cases": json.dumps(CASES)}},
        {"test_cases": CASES},
        {"test_cases": PAIRS, "input_output": ""},
        {"public_test_cases": json.dumps(CASES[:1]), "private_test_cases": CASES[1:]},
    ],
)
def test_pairs_of_input_and_output_are_read_in_every_published_shape(row):
    assert read_tests(row) == DOUBLED


def test_function_calls_are_read_in_every_published_shape():
    apps = {"inputs": [[[1, 2], 3]], "outputs": [[6]], "fn_name": "add"}
    wrapped = ReturnTest("add", [[1, 2], 3], [6], wrapped=True)
    assert read_tests({"input_output": apps}) == [wrapped]
    assert read_tests({"test_cases": [{"input": "[[1, 2], 3]", "output": [6], "fn_name": "add"}]}) == [
        wrapped
    ]
    case = {"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}
    live = {"public_test_cases": [case], "metadata": '{"func_name": "add"}'}
    assert read_tests(live) == [ReturnTest("add", [[1, 2], 3], 6)]


def test_assertions_are_read_in_every_published_shape():
    mbpp = {
        "test_list": ["assert f(1)", "assert f(2)"],
        "test_setup_code": "x = 1",
        "test_imports": ["import math"],
    }
    assert read_tests(mbpp) == [
        AssertionTest("import math\nx = 1\nassert f(1)"),
        AssertionTest("import math\nx = 1\nassert f(2)"),
    ]
    human = {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"}
    assert read_tests(human) == [AssertionTest(human["test"] + "\ncheck(f)")]


@pytest.mark.parametrize(
    "row", [{}, {"input_output": ""}, {"input_output": None}, {"input_output": "{}"}, {"test_list": []}]
)
def test_a_row_without_tests_has_no_score(row):
    assert read_tests(row) == []
    assert score("print(1)", **row) is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"input_output": "{"}, "input_output is no JSON"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"input_output": {"input": "1"}}, r"has \['input'\]; must have inputs and outputs"),
        ({"verification_info": {"test_cases": [{"input": "1"}]}}, "must be mappings with input and output"),
        ({"private_test_cases": "eJxr"}, "unpack them first"),
        ({"test_list": "[1]"}, "must be a list of texts"),
    ],
)
def test_tests_in_no_known_shape_are_an_error_that_names_the_column(row, why):
    with pytest.raises(ValueError, match=why):
        read_tests(row)


# ---- programs that run ----


@pytest.mark.parametrize(
    ("program", "all_", "share"),
    [
        ("print(2 * int(input()))", 1.0, 1.0),
        ("print(2)", 0.0, 0.5),
        ("print(2 * int(input()))\nraise SystemExit(1)", 0.0, 0.0),
        ("print(2 *", 0.0, 0.0),
        ("print(2 * int(input())); exit()", 1.0, 1.0),
        ("print(7)", 0.0, 0.0),
    ],
)
def test_a_program_that_prints_is_scored_by_its_output(program, all_, share):
    assert score(program, input_output=PAIRS) == all_
    assert score(program, share=True, input_output=PAIRS) == share


def test_a_correct_prefix_of_the_output_fails():
    tests = {"inputs": [""], "outputs": ["1\n2\n3\n"]}
    assert score("print(1); print(2)", share=True, input_output=tests) == 0.0


def test_an_unclosed_block_and_a_missing_program_score_zero():
    for text in ("```python\nprint(2)", "2", "<think>```python\nprint(2)\n```"):
        assert code(["p"], [text], sandbox="local", input_output=[PAIRS]) == [0.0]


CALLS = {"inputs": [[1, 2], [3, 4]], "outputs": [[3], 7], "fn_name": "add"}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def add(a, b): return a + b", 1.0),
        ("class Solution:\n    def add(self, a: List[int], b) -> int: return a + b", 1.0),
        ("def add(a, b):\n    print('noise')\n    return a + b\nif __name__ == '__main__':\n    1 / 0", 1.0),
        ("def add(a, b): return 3", 0.5),
        ("def add(a, b): return [3] if a == 1 else {7}", 0.5),
        ("def sub(a, b): return a - b", 0.0),
        ("def add(a, b): return pow(a + b, 1, 100)", 1.0),
        ("raise SystemExit(0)", 0.0),
        ("import os; os._exit(0)", 0.0),
    ],
)
def test_a_called_function_is_scored_by_what_it_returns(program, expected):
    assert score(program, share=True, input_output=CALLS) == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(x): return x + 1", 1.0),
        ("def f(x): return 2", 0.5),
        ("raise SystemExit(0)", 0.0),
        ("import os; os._exit(0)", 0.0),
        ("import sys; f = lambda x: sys.exit(0)", 0.0),
    ],
)
def test_assertions_are_scored_by_the_share_that_passes(program, expected):
    tests = ["assert f(1) == 2", "assert f(math.floor(2.5)) == 3"]
    assert score(program, share=True, test_list=tests, test_imports=["import math"]) == expected


ENDS = "import os; os._exit(0)"
FORGED = {
    "token from stdin": f"import sys\nw = sys.stdin.readline().strip()\nprint('\\n' + w + '0', flush=True)\n{ENDS}",
    "token from descriptor 0": f"w = open(0).read().strip()\nprint('\\n' + w + '0', flush=True)\n{ENDS}",
    "exec replaced": "import builtins\nbuiltins.exec = lambda *a, **k: None\ndef f(x): return 3",
    "compile replaced": "import builtins\nbuiltins.compile = lambda *a, **k: ''\ndef f(x): return 3",
    "both replaced": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\ndef f(x): return 3",
    "output replaced": "import builtins, json\nbuiltins.print = json.dumps = lambda *a, **k: '0'\ndef f(x): return 3",
    "token from the main module": f"import __main__\nprint('\\n' + __main__.word + '0', flush=True)\n{ENDS}",
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_program_that_forges_its_assertions_scores_zero(forgery):
    assert score(FORGED[forgery], test_list=["assert f(1) == 2"]) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "class Any:\n    def __eq__(self, other): return True\nf = lambda x: Any()",
        f"import sys, os\nw = sys._getframe(1).f_locals['word']\nprint('\\n' + w + '0', flush=True)\n{ENDS}",
    ],
)
def test_the_forgeries_that_the_docs_admit_still_work(program):
    assert score(program, test_list=["assert f(1) == 2"]) == 1.0


@pytest.mark.parametrize(
    "before",
    [
        "import sys; rest = sys.stdin.buffer.read(); assert rest == b''",
        "import sys; sys.stdout = sys.stderr",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.detach()); print('noise')",
        "import os; os.write(1, b'noise')",
        "import atexit; atexit.register(print, 'noise')",
        "print = input = exec = None",
    ],
)
def test_a_correct_function_passes_whatever_happens_to_stdin_and_stdout(before):
    program = f"{before}\ndef f(x): return x + 1"
    assert score(program, test_list=["assert f(1) == 2"]) == 1.0
    assert score(program, input_output={"inputs": [[1]], "outputs": [2], "fn_name": "f"}) == 1.0


def test_expected_values_are_not_in_the_script_that_runs():
    for test in (OutputTest("1", "expected-secret"), ReturnTest("f", [1], "expected-secret")):
        assert "expected-secret" not in "".join(test.script("def f(x): return x"))


@pytest.mark.parametrize("answer", ["[" * 100_000, "9" * 5_000, "NaN", "{", ""])
def test_an_unreadable_return_value_fails_its_test(answer):
    test = ReturnTest("f", [], 1)
    script = ("", "word")
    outcome = run(f"print('word' + {answer!r})")
    assert test.passed(outcome, script) is False


# ---- time ----


class Recorded:
    """A sandbox in which each program takes `seconds`; `asked` records the calls."""

    def __init__(self, ended="exit", stdout="", seconds=0.0):
        self.ended, self.stdout, self.seconds, self.asked = ended, stdout, seconds, []

    def __call__(self, code, stdin, limits):
        from grpo_jax.sandbox import Outcome

        self.asked.append((code, stdin, limits))
        time.sleep(self.seconds)
        return Outcome(
            stdout=self.stdout,
            stderr="",
            exit_code=0 if self.ended == "exit" else None,
            signal=None,
            ended=self.ended,
            seconds=self.seconds,
        )


def program_tester(sandbox, whole=True, deadline=INF, alone=True):
    return ProgramTester(sandbox, Limits(), whole=whole, deadline=deadline, alone=alone)


def test_all_or_nothing_stops_at_the_first_failure():
    sandbox = Recorded(stdout="4")
    assert program_tester(sandbox).score("x", DOUBLED) == 0.0
    assert len(sandbox.asked) == 1
    assert program_tester(sandbox, whole=False).score("x", DOUBLED) == 0.5


def test_a_program_that_is_too_slow_once_is_not_run_again():
    for ended in ("cpu", "wall"):
        sandbox = Recorded(ended)
        assert program_tester(sandbox, whole=False).score("x", DOUBLED) == 0.0
        assert len(sandbox.asked) == 1


def test_a_row_alone_fails_the_tests_that_the_deadline_cuts_off():
    sandbox = Recorded(stdout="2", seconds=0.2)
    deadline = time.monotonic() + 0.1
    assert program_tester(sandbox, whole=False, deadline=deadline).score("x", DOUBLED) == 0.5
    assert sandbox.asked[0][2].wall < 0.1


def test_a_slow_program_scores_zero_and_is_counted_as_out_of_time():
    logged = []
    given = {"sandbox": "local", "seconds": 30, "log_metric": lambda *metric: logged.append(metric)}
    slow = fence("import time; time.sleep(60)")
    assert code(["p"], [slow], reward_timeout=0.5, input_output=[PAIRS], **given) == [0.0]
    assert code(["p"], [fence("print(1)")], reward_timeout=60, input_output=[PAIRS], **given) == [0.0]
    assert logged == [("rewards/code/out_of_time", 1.0), ("rewards/code/out_of_time", 0.0)]


def test_recipes_with_the_code_reward_give_it_at_least_60_seconds():
    files = [Path(recipes.__file__).parent / f"{name}.yaml" for name in recipes.names()]
    settings = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    runs_code = lambda recipe: any(str(reward).startswith("code:") for reward in recipe.get("rewards") or [])
    timeouts = [recipe["reward_timeout"] for recipe in settings if runs_code(recipe)]
    assert timeouts
    assert min(timeouts) >= 60


def test_rows_scored_together_raise_a_timeout_instead():
    with pytest.raises(TimeoutError):
        program_tester(Recorded(), deadline=time.monotonic() - 1, alone=False).score("x", DOUBLED)
    with pytest.raises(TimeoutError):
        program_tester(Recorded("wall"), deadline=time.monotonic() + 1, alone=False).score("x", DOUBLED)


def test_no_program_is_started_for_a_row_without_one():
    sandbox = Recorded()
    assert program_tester(sandbox).score(None, DOUBLED) == 0.0
    assert sandbox.asked == []


# ---- in the pool ----


def test_slow_rows_score_zero_in_the_pool_and_the_others_are_scored():
    slow = fence("while True: pass")
    right = fence("print(2 * int(input()))")
    with RewardPool(["code:sandbox=local,seconds=60,score=share"], workers=2, timeout=4.5) as pool:
        scores = pool.score(["p"] * 3, [right, slow, right], {"input_output": [PAIRS] * 3})
    assert scores.values[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert scores.retried == {"code": 1}
    assert scores.errors == scores.timeouts == {"code": 0}


def test_a_failing_sandbox_is_an_error_that_is_counted_and_named():
    with RewardPool(["code:sandbox=http://127.0.0.1:9/"], workers=1, timeout=30) as pool:
        scores = pool.score(["p"], [fence("print(1)")], {"input_output": [PAIRS]})
    assert scores.errors == {"code": 1}
    assert "http://127.0.0.1:9/" in pool.messages["code"]["errors"]
