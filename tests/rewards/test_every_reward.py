"""What holds for every built-in reward: any text has a score, always the same, row by row; and the docs list it."""

import copy
import inspect
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax.rewards import BUILTIN, load_reward
from grpo_jax.rewards.load import parameters
from grpo_jax.rewards.options import options_of
from grpo_jax.rewards.pool.logs import ALWAYS

GIVEN = {"prompts", "completions", "completion_ids"}
GROUPWISE = {"kimi_length"}
"""Rewards that compare the rows of one prompt."""
OPTIONS = {
    "boxed_math": ["think=false"],
    "kimi_length": ["judge=gsm8k"],
    "code_format": ["language=cpp,faithful=true"],
    "cosine_scaled_reward": ["max_len=3,faithful=true"],
    "language_consistency": ["language=cjk"],
    "repetition": ["ngram_size=1"],
    "soft_format": ["think=a,answer=b"],
}
# Programs run only in a chosen sandbox, and here none does: no row has a test for it.
NAMES = ["code:sandbox=local" if name == "code" else name for name in BUILTIN]
SPECS = [
    *NAMES,
    *[f"{name}:faithful=true" for name in NAMES if "faithful" in options_of(load_reward(name).function)],
    *[f"{name}:{options}" for name, written in OPTIONS.items() for options in written],
]

# No powers, factorials or products of big numbers: those need the pool's deadline (see test_known_grader_faults.py).
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "\n", " ", "\\boxed{", "}", "\\frac", "{1}", "{2}", "\\sqrt2", "$",
    "####", "-7", "1,080", "3 1/2", "=", "+", "(", ")", "```python\n", "```", "<|im_end|>", "is a knight", "Zoey ",
    "Sam is a knave", "First,", "- ", "1. ", "四个苹果", "word ", "\\(", "\\[", "\\text{", "x", "\\begin{pmatrix}",
    "٣", "²",
]  # fmt: skip
ANYTHING = st.text(st.characters(exclude_characters="^!*", exclude_categories=["Cs"]), max_size=30)
TEXTS = st.lists(st.sampled_from(PIECES) | ANYTHING, max_size=12).map("".join)
PROMPTS = st.sampled_from(["q", "Solve it.\n<think>\n"]) | TEXTS
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}),
    max_size=3,
)
COLUMNS = {
    "answer": st.sampled_from(["4", "-7", "#### 1,080"]),
    "solution": st.sampled_from(["4", r"$\frac{1}{2}$", "nobody knows", ""]),
    "numbers": st.just([3, 4]),
    "target": st.sampled_from([7, "12", -1]),
    "names": st.sampled_from([None, ["Zoey", "小明"], "Zoey, Sam"]),
    "completion_ids": st.lists(st.integers(0, 3), max_size=8),
}
PEOPLE = st.sampled_from(["Zoey is a knight", "(1) Zoey is a knight (2) Sam is a knave"])


def rows_for(spec):
    about_people = spec.split(":")[0] in ("knights_and_knaves", "logic_rl")
    columns = COLUMNS | ({"answer": PEOPLE} if about_people else {})
    chat = TEXTS.map(lambda text: [{"role": "assistant", "content": text}])
    row = st.fixed_dictionaries({"prompts": PROMPTS | CHATS, "completions": TEXTS | chat, **columns})
    return st.lists(row, min_size=1, max_size=4)


def scores_of(function, rows):
    """The scores of some rows, which stay unchanged."""
    accepted = parameters(function)
    names = [n for n in rows[0] if accepted[1] is None or n in accepted[1]]
    before = copy.deepcopy(rows)
    scores = function(**{name: [row[name] for row in rows] for name in names})
    assert rows == before
    assert len(scores) == len(rows)
    assert all(s is None or (isinstance(s, float) and math.isfinite(s)) for s in scores)
    return scores


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_scores_depend_neither_on_the_order_of_the_rows_nor_on_earlier_calls(spec, data):
    function = load_reward(spec).function
    rows = data.draw(rows_for(spec))
    scores = scores_of(function, rows)
    assert scores_of(function, rows) == scores
    order = data.draw(st.permutations(range(len(rows))))
    assert scores_of(function, [rows[i] for i in order]) == [scores[i] for i in order]
    if spec.split(":")[0] not in GROUPWISE:
        assert [scores_of(function, [row])[0] for row in rows] == scores


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_scores(name):
    needed = parameters(load_reward(name).function)[0]
    more = {"numbers": []} if "target" in needed else {}
    assert load_reward(name).function(**{column: [] for column in needed}, **more) == []


def table():
    """(name, columns, options) as docs/rewards.md has them."""
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    lines = [re.split(r"\s*\|\s*", line) for line in text.splitlines() if line.startswith("| `")]
    coded = lambda cell: re.findall(r"`([^`]+)`", cell)
    return [
        (coded(name)[0], set(coded(columns)), coded(options)) for _, name, _, columns, options, *_ in lines
    ]


def test_the_docs_list_every_reward_once_in_order():
    assert [name for name, _, _ in table()] == sorted(BUILTIN) == list(BUILTIN)


@pytest.mark.parametrize(("name", "columns", "options"), table())
def test_the_docs_list_the_columns_and_options_of_every_reward(name, columns, options):
    function = load_reward(NAMES[list(BUILTIN).index(name)]).function
    known = options_of(function).copy()
    required, _ = parameters(function)
    assert required - GIVEN == columns & required
    assert columns == names_of(function) - GIVEN - ALWAYS - known.keys()
    if name == "code":
        known["sandbox"] = known["sandbox"].replace(default="none")
    shown = {
        n: str(o.default).lower() if isinstance(o.default, bool) else str(o.default) for n, o in known.items()
    }
    assert options == [f"{n}={value}" for n, value in shown.items()]


def names_of(function):
    """Every parameter's name but that of `**columns`."""
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.kind is not p.VAR_KEYWORD}
