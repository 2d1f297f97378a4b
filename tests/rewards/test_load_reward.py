"""Finding a reward: every mistake in what the user wrote gets a sentence, not a traceback."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.rewards import BUILTIN, combine, load_reward
from grpo_jax.rewards.functions.text import text_of
from grpo_jax.rewards.load import name_of

FILE = """
from dataclasses import dataclass
import neighbour_of_rewards
@dataclass
class Table:
    x: int = neighbour_of_rewards.ONE
def exact(prompts, completions, **columns):
    return [float(Table().x)] * len(prompts)
number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour_of_rewards.py").write_text("ONE = 1\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "code"])
def test_every_builtin_loads_under_its_name(name):
    reward = load_reward(name)
    assert (reward.name, name_of(reward.function), reward.spec) == (name, name, name)


def test_a_builtin_whose_package_is_missing_names_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "grpo_jax.rewards.functions.accuracy", raising=False)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="'accuracy_reward' needs the package math_verify"):
        load_reward("accuracy_reward")


def test_a_file_with_dataclasses_and_neighbouring_modules_loads(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    reward = load_reward("mine.py:exact")
    assert reward.function(["q"], ["c"]) == [1.0]
    assert (reward.name, reward.spec) == ("exact", f"{file}:exact")  # found again from another folder


def test_every_kind_of_callable_has_a_name():
    class Grader:
        def __call__(self, prompts, completions, **columns):
            return [0.0]

    assert load_reward(text_of).name == "text_of"
    assert load_reward(functools.partial(text_of)).name == "text_of"
    assert load_reward(Grader()).name == "Grader"
    assert load_reward(load_reward("gsm8k")).spec == "gsm8k"


def mistakes(file):
    broken = file.parent / "broken.py"
    broken.write_text("x = 1\nraise RuntimeError('boom')\n")
    leaves = file.parent / "leaves.py"
    leaves.write_text("import sys\nsys.exit(3)\n")
    return {
        "gsm8": r"'gsm8'.*did you mean 'gsm8k'.*countdown",
        "nothing_like_it": r"'nothing_like_it'; built in are",
        f"{file.parent}/absent.py:exact": r"there is no file .*absent\.py",
        f"{file}:exakt": r"no function 'exakt' \(did you mean 'exact'",
        f"{file}:number": r"is a int, not a function",
        f"{file}:Table": r"is a type, not a function",
        f"{file}": r"does not say which function",
        f"{file}:": r"does not say which function",
        f"{broken}:f": r"fails when imported: RuntimeError: boom \(broken.py, line 2\)",
        f"{leaves}:f": r"fails when imported: SystemExit: 3",
        3: r"3 is a int, not a function",
    }


def test_each_mistake_is_reported_in_one_sentence(file):
    for spec, message in mistakes(file).items():
        with pytest.raises(UserError, match=message) as caught:
            load_reward(spec)
        assert str(caught.value).count("\n") == 0


def test_text_of_reads_strings_and_messages_of_the_assistant():
    assert text_of("a") == "a"
    assert text_of([{"role": "assistant", "content": "a"}]) == "a"
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]) == "a"
    turns = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "9"}, {"content": "b"}]
    assert text_of(turns) == "a\nb"
    assert text_of([{"role": "assistant", "content": None}]) == ""


def test_combine_gives_nan_to_a_row_without_any_score():
    nan = np.nan
    values = np.array([[1.0, 2.0], [nan, 2.0], [nan, nan], [0.0, nan]])
    np.testing.assert_array_equal(combine(values, [1.0, 0.5]), [2.0, 1.0, nan, 0.0])
    assert combine(values.astype(np.float32), [1, 1]).dtype == np.float64
    with pytest.raises(ValueError, match="weights"):
        combine(values, [1.0])


def test_rewards_import_neither_jax_nor_numpy_until_asked():
    code = (
        "import sys, grpo_jax.rewards.pool.worker, grpo_jax.rewards.functions.gsm8k\n"
        "assert 'numpy' not in sys.modules; "
        "import grpo_jax.rewards.pool.pool; assert 'jax' not in sys.modules and 'cloudpickle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
