"""Options in a reward's name: values arrive with their types, and a typo is reported in one sentence."""

import functools
import inspect

import pytest

from grpo_jax.config import GRPOConfig, load_settings
from grpo_jax.errors import UserError
from grpo_jax.rewards import BUILTIN, RewardPool, load_reward
from grpo_jax.rewards.load import parameters
from grpo_jax.rewards.options import BoundFunction, options_of, read_options

FILE = """
from typing import Literal
def scaled(completions, difficulty=None, *, by: float = 1.0, times: int = 1, minus: bool = False,
           word: str = "", mode: Literal["plain", "odd"] = "plain", **columns):
    value = (-1 if minus else 1) * by * times + len(word) + 100 * (mode == "odd")
    return [value] * len(completions)
async def later(completions, *, by: float = 1.0, **columns):
    return [by] * len(completions)
def bare(completions):
    return [0.0] * len(completions)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("by=2.5", 2.5),
        ("by=2", 2.0),
        ("times=3,minus=true", -3.0),
        (" times = 3 , by=2", 6.0),
        ("word=a:b", 4.0),
        ("minus=FALSE,mode=odd", 101.0),
    ],
)
def test_values_arrive_with_their_types_in_worker_processes_too(file, options, expected):
    reward = load_reward(f"{file}:scaled:{options}")
    assert reward.name == "scaled"
    assert reward.function(completions=["c"]) == [expected]
    with RewardPool([reward], workers=1) as pool:
        assert pool.score(["p"], ["c"]).values.tolist() == [[expected]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "bye=2",
            r"no option 'bye' \(did you mean 'by'\?\); it has by=1.0, times=1, minus=false, word=, mode=plain",
        ),
        ("difficulty=2", "no option 'difficulty'"),  # a column
        ("by=much", "by=much must be a finite number"),
        ("by=nan", "by=nan must be a finite number"),
        ("times=2.5", "times=2.5 must be a whole number"),
        ("minus=1", "minus=1 must be true or false"),
        ("mode=even", "mode=even must be one of plain, odd"),
        ("by=1,by=2", "by is given twice"),
        ("by=1,minus", "no option 'minus'"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(file, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_reward(f"{file}:scaled:{options}")
    assert "\n" not in str(caught.value)


def test_a_reward_without_options_says_so(file):
    with pytest.raises(UserError, match="this reward has no options"):
        load_reward(f"{file}:bare:x=1")
    with pytest.raises(UserError, match=r"'gsm8k:strict'.*no options"):
        load_reward("gsm8k:strict")
    with pytest.raises(UserError, match=r"nothing is called 'gsm'.*did you mean 'gsm8k'"):
        load_reward("gsm:x=1")


def test_an_async_function_with_options_is_still_awaited(file):
    with RewardPool([f"{file}:later:by=3"], workers=1) as pool:
        assert pool.score(["p"], ["c"]).values.tolist() == [[3.0]]


def test_a_column_does_not_replace_an_option_that_is_set(file):
    with RewardPool([f"{file}:scaled:times=2"], workers=1) as pool:
        columns = {"times": [9], "other": [1]}
        assert pool.score(["p"], ["c"], columns).values.tolist() == [[2.0]]


def test_a_column_never_sets_an_option_of_a_builtin_reward():
    """Data sets of programs have a column `language`."""
    for name in BUILTIN:
        function = load_reward("code:sandbox=local" if name == "code" else name).function
        options = options_of(function)
        assert not options or isinstance(function, BoundFunction)
        assert options.keys() <= getattr(function, "keywords", {}).keys()
        assert not options.keys() & parameters(function)[0]


def test_options_of_a_builtin_reach_its_workers():
    with RewardPool(["tag_count", "tag_count:faithful=true"], workers=1) as pool:
        got = pool.score(["q"], ["<think>a</think><answer>b</answer>"], {"faithful": [1]})
    assert got.values.tolist() == [[1.0, 0.0]]


def test_a_reward_used_twice_has_its_options_in_its_name(file):
    specs = [f"{file}:scaled", f"{file}:scaled:by=2,times=2", f"{file}:scaled:by=3", f"{file}:bare"]
    pool = RewardPool(specs)
    assert pool.names == ["scaled", "scaled:by=2,times=2", "scaled:by=3", "bare"]
    assert RewardPool(specs[1:2]).names == ["scaled"]
    with pytest.raises(UserError, match="two functions are called 'scaled'"):
        RewardPool(specs[:1] * 2)


SPECS = ["a.py:f:x=1,y=two", "gsm8k", "b.py:g:z=true", "c.py:h"]


@pytest.mark.parametrize(
    "written",
    [",".join(SPECS), f"[{', '.join(SPECS)}]", " , ".join(SPECS), SPECS, ",".join(SPECS).split(",")],
)
def test_commas_between_options_do_not_end_a_name(written):
    assert GRPOConfig(rewards=written).rewards == SPECS


def test_options_survive_yaml_and_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GRPOConfig(rewards=SPECS).to_yaml())
    assert load_settings(GRPOConfig, path).rewards == SPECS
    path.write_text(f"rewards: [{', '.join(SPECS)}]\n")
    assert load_settings(GRPOConfig, path).rewards == SPECS
    assert load_settings(GRPOConfig, None, {"rewards": ",".join(SPECS)}).rewards == SPECS


def test_a_bound_option_cannot_be_overridden_and_shows_in_the_signature():
    def f(completions, answer, *, x: int = 1, **columns):
        return x

    bound = BoundFunction(f, x=5)
    assert bound([], [], x=7) == 5 != functools.partial(f, x=5)([], [], x=7)
    assert parameters(bound)[0] == {"completions", "answer"}
    assert read_options("f", "", options_of(f)) == {}
    assert inspect.signature(bound).parameters["x"].default == 5


def test_a_typo_ends_the_demo_before_its_model_is_made(tmp_path):
    from grpo_jax.commands.train import train_demo

    config = GRPOConfig(
        rewards="repetition:ngram_sise=2", dataset="tiny_countdown", output_dir=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match="no option 'ngram_sise'"):
        train_demo(config)
    assert not any(tmp_path.iterdir())
