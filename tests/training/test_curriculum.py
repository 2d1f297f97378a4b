"""Stages, mixtures and prompts that are left out, in whole runs: what changes with a stage, and that a run which stops
at any step goes on as if it had not."""

import contextlib
import functools
import io
import json
import shutil
import sys

import cloudpickle
import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.errors import UserError

# Reward workers get functions of this file themselves, and need not import it, with all that it imports.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CLOCKS = ("time/", "compilations/", "step_time", "tokens_per_second", "rollout_tokens", "peak_memory")


@pytest.fixture(scope="module")
def train(train, shared_programs):
    """What is decided here is decided on the host; one device compiles soonest."""
    return functools.partial(train, mesh="data=1")


def lines(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def column(run, name):
    return [json.loads(line).get(name) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run, step):
    return json.loads((run / "checkpoints" / str(step) / "notes" / "metadata").read_text())["tensors"]


def table(run, step):
    return pq.read_table(run / "completions" / f"completions_{step:05d}.parquet").to_pydict()


# ---- stages ----

STAGES = [
    {"until_step": 2, "num_generations": 2},
    {"until_step": 4, "max_completion_length": 16, "num_generations": 4},
    {"num_generations": 2},  # as it began
]
LENGTHENED = {"curriculum": STAGES, "max_steps": 6, "dynamic_sampling": True, "beta": 0.1}


@pytest.fixture(scope="module")
def lengthened(train):
    return train(**LENGTHENED)


def test_each_stage_has_its_own_lengths_and_is_compiled_once(lengthened):
    """Stages with equal settings share their programs."""
    assert column(lengthened, "curriculum/stage") == [1, 1, 2, 2, 3, 3]
    assert column(lengthened, "compilations/update") == [1, 1, 2, 2, 2, 2]
    rows = [len(table(lengthened, step)["length"]) for step in range(1, 7)]
    assert rows == [16, 16, 32, 32, 16, 16]
    longest = [max(table(lengthened, step)["length"]) for step in range(1, 7)]
    assert max(longest[:2] + longest[4:]) <= 8 < max(longest[2:4]) <= 16


def test_a_run_resumed_at_the_edge_of_a_stage_ends_the_same(lengthened, train, tmp_path):
    """A run as it was when it died after step 2; it dies again after step 4."""
    later = shutil.ignore_patterns("[3-6]", "hf", "summary.json", "*_0000[3-6].parquet")
    other = shutil.copytree(lengthened, tmp_path / "run", ignore=later)
    train(dies_after=(4,), output_dir=str(other), **LENGTHENED)
    assert lines(other) == lines(lengthened)
    assert tensors(other, 6) == tensors(lengthened, 6)


# ---- mixtures ----


def first(completions, letter, **columns):
    return [float(text.count(each)) for text, each in zip(completions, letter)]


def second(completions, digit, **columns):
    return [float(text.count(str(each))) for text, each in zip(completions, digit)]


def prolix(completions, **columns):
    return [len(text) / 100 for text in completions]


DOMAINS = {
    "letters": [{"prompt": f"{i}: say a", "letter": "a", "level": i % 2} for i in range(6)],
    "digits": [{"prompt": f"{i}: say 1", "digit": 1, "level": i % 2} for i in range(12)],
}


@pytest.fixture(scope="module")
def mixed(train):
    """Two steps on even digits, one on odd rows of both domains, two on all rows. Its stderr is in a file beside it."""
    stages = [
        {"until_epochs": 1.4, "mixture": {"digits": 1}, "where": {"level": 0}},
        {"until_step": 3, "where": {"level": [1]}},
        {"until_step": 5},
    ]
    given = {"train_dataset": DOMAINS, "reward_funcs": [first, second, prolix]}
    with contextlib.redirect_stderr(io.StringIO()) as said:
        run = train(given=given, curriculum=stages, mixture={"letters": 3, "digits": 1}, max_steps=9)
    (run / "stderr").write_text(said.getvalue())
    return run


def test_a_stage_ends_when_its_prompts_are_drawn_so_often(mixed):
    """1.4 epochs of 6 even digits take two steps of 8."""
    assert column(mixed, "curriculum/stage") == [1, 1, 2, 3, 3]


def test_the_end_of_the_last_stage_ends_the_run(mixed):
    assert column(mixed, "step") == [1, 2, 3, 4, 5]
    assert "stopped after step 5 of 9: the curriculum has ended" in (mixed / "stderr").read_text()


def test_a_reward_scores_only_domains_that_have_its_column(mixed):
    for step in (1, 3, 4, 5):
        rows = table(mixed, step)
        known = {name: [value is not None for value in rows[name]] for name in ("first", "second", "prolix")}
        assert known["first"] == ["say a" in prompt for prompt in rows["prompt"]]
        assert known["second"] == ["say 1" in prompt for prompt in rows["prompt"]]
        assert all(known["prolix"])


def test_domains_are_drawn_by_their_weights(mixed):
    assert column(mixed, "domains/letters/share") == [None, None, 0.75, 0.75, 0.75]
    assert column(mixed, "domains/digits/share") == [1.0, 1.0, 0.25, 0.25, 0.25]


def test_a_domains_metrics_are_those_of_its_rows(mixed):
    rows = table(mixed, 4)
    for name, word, reward in (("letters", "say a", "first"), ("digits", "say 1", "second")):
        among = [i for i, prompt in enumerate(rows["prompt"]) if word in prompt]
        total = [rows[reward][i] + rows["prolix"][i] for i in among]
        assert column(mixed, f"domains/{name}/reward")[3] == pytest.approx(np.mean(total), rel=1e-5)
        assert column(mixed, f"domains/{name}/success")[3] == pytest.approx(
            np.mean([rows[reward][i] >= 1 for i in among])
        )


def test_a_stage_draws_only_rows_of_its_domains_and_levels(mixed):
    numbers = lambda step: {int(prompt.partition(":")[0]) % 2 for prompt in table(mixed, step)["prompt"]}
    assert [numbers(step) for step in (1, 2, 3, 4)] == [{0}, {0}, {1}, {0, 1}]


# ---- prompts that are left out ----


def solved(completions, level, **columns):
    """Even levels are always solved."""
    return [1.0 if each == 0 else len(text) / 1000 for text, each in zip(completions, level)]


def test_history_resampling_leaves_out_solved_prompts(train):
    given = {"train_dataset": DOMAINS["digits"], "reward_funcs": solved}
    run = train(
        given=given,
        history_resampling=True,
        max_steps=4,
        prompts_per_step=8,
        dies_after=(2,),
        shuffle_dataset=False,
    )
    drawn = [
        int(prompt.partition(":")[0]) for step in (1, 2, 3, 4) for prompt in table(run, step)["prompt"][::2]
    ]
    # Those drawn in the step in which the epoch ends are not scored yet when the next one begins.
    assert drawn == [*range(12), 1, 3, 5, 7, *[8, 9, 10, 11], *[1, 3, 5, 7], *[9, 11, 1, 3, 5, 7, 9, 11]]
    assert column(run, "curriculum/prompts") == [12] * 4
    assert column(run, "curriculum/left_out") == [0, 4, 6, 6]


def test_prompts_outside_the_pass_rate_window_are_left_out(train):
    rows = [{"prompt": f"{i}: say a", "pass_rate": i / 10} for i in range(11)]
    given = {"train_dataset": rows, "reward_funcs": prolix}
    run = train(given=given, pass_rate_window=[0.2, 0.5], max_steps=1)
    assert {prompt[0] for prompt in table(run, 1)["prompt"]} == {"3", "4"}


# ---- what is refused ----


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            DOMAINS,
            {"mixture": {"letter": 1}},
            r"mixture = .*no data set 'letter' \(did you mean 'letters'\?\)",
        ),
        (DOMAINS["digits"], {"mixture": {"digits": 1}}, "mixture = .*dataset is a single one"),
        (DOMAINS, {"curriculum": [{"where": {"levels": 1}}]}, r"curriculum\[0\].where: no column 'levels'"),
        (DOMAINS, {"curriculum": [{"where": {"level": 7}}]}, "no row has level = 7; there are 0, 1"),
        (
            DOMAINS,
            {"curriculum": [{"where": {"digit": 1}, "mixture": {"letters": 1}}]},
            "no row of 'letters' is left",
        ),
        (DOMAINS, {"rewards": None}, "rewards: none has the columns it needs in 'letters'; it has domain"),
        (
            [{"prompt": "a", "pass_rate": 7}],
            {"pass_rate_window": [0, 1]},
            "dataset, row 1: pass_rate = 7 must be a share",
        ),
    ],
)
def test_impossible_mixtures_and_curricula_are_refused(tiny_settings, rows, changes, message):
    settings = {name: tiny_settings[name] for name in ("prompts_per_step", "max_prompt_length")}
    functions = [second] if changes.pop("rewards", 1) is None else [prolix]
    args = GRPOConfig(**settings | changes, output_dir=None)
    with pytest.raises(UserError, match=message):
        GRPOTrainer(tiny_settings["model"], functions, args, train_dataset=rows)
