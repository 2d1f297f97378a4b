"""Scoring while sampling gives what scoring afterwards gives, and no host waits for one that has stopped."""

import contextlib
import dataclasses
import time

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax.data.prompts import Prompts
from grpo_jax.errors import UserError
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.programs import Rollout
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.sharding import hosts

P, G, WIDTH = 5, 3, 6
FUNCTIONS = """
def digits(prompts, completions, completion_ids, answer, log_extra, log_metric, trainer_state):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert texts == [" ".join(map(str, ids)) for ids in completion_ids]
    assert len(set(map(str, prompts))) == 1, "groups must not be mixed"
    log_extra("first", [ids[0] for ids in completion_ids])
    log_metric("group", answer[0])
    if answer[0] == 3:
        raise ValueError("three is too much")
    return [sum(ids) + trainer_state for ids in completion_ids]

async def parity(completion_ids, **columns):
    return [None if len(ids) == 3 else len(ids) % 2 for ids in completion_ids]
"""


class Characters:
    """A tokenizer: a token a character one way, numbers the other."""

    chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(map(str, row)) for row in ids]


@pytest.fixture(scope="module")
def batch():
    """Two of its prompts are equal and stand beside each other."""
    rows = [{"prompt": f"prompt {min(i, 3)}", "answer": i} for i in range(P)]
    return Prompts(rows, Characters(), max_prompt_length=30).at(range(P))


@pytest.fixture(scope="module")
def rollout():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, WIDTH + 1, (P, G)).astype(np.int32)
    inside = np.arange(WIDTH) < lengths[..., None]
    tokens = np.where(inside, rng.integers(1, 99, (P, G, WIDTH)), 0).astype(np.int32)
    return Rollout.of_policy(tokens, np.zeros((P, G, WIDTH), np.float32), lengths, lengths < WIDTH)


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("scoring") / "scored.py"
    path.write_text(FUNCTIONS)
    return [f"{path}:digits", f"{path}:parity"]


@pytest.fixture(scope="module")
def scorer(functions):
    with RewardPool(functions, workers=2) as pool:
        yield Scorer(pool, [1.0, 0.5], Characters(), overlong=(WIDTH, 3))


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as the second of two that agree with whatever it says; it scores prompts 2, 3 and 4."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "any_process", lambda flag: flag)


def ids_of(rollout, p):
    return [row[:n].tolist() for row, n in zip(rollout.tokens[p], rollout.lengths[p])]


def assert_same(ours, theirs):
    for field in dataclasses.fields(theirs):
        np.testing.assert_equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)


@given(st.permutations(range(P)), st.integers(0, P))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompts_scored_early_get_the_scores_that_they_get_after_the_rollout(
    scorer, batch, rollout, order, early
):
    with scorer.stream(batch, G, 100) as scoring:
        for p in order[:early]:
            scoring.add(p, ids_of(rollout, p))
        got = scoring.finish(rollout)
    assert_same(got, scorer(batch, rollout, 100))
    assert got.failures == {"rewards/digits/errors": G}, "of the prompt whose answer is three"
    assert got.metrics["group"] == (0 + 1 + 2 + 4) / 4, "equal prompts beside each other are two groups"
    sums = np.where(np.arange(P)[:, None] == 3, np.nan, rollout.tokens.sum(-1) + 100.0)
    np.testing.assert_array_equal(got.values[..., 0], sums)


def test_a_group_is_scored_before_the_rollout_ends(scorer, batch, rollout):
    with scorer.stream(batch, G, 0) as scoring:
        scoring.add(1, ids_of(rollout, 1))
        values = scoring._rows._batch.scores.values
        end = time.monotonic() + 60
        while np.isnan(values[G : 2 * G, 0]).any():
            assert time.monotonic() < end, "nothing happens before the rollout is there"
        assert np.isnan(values[2 * G :, 0]).all()


def test_a_sampler_that_fails_leaves_a_scorer_that_can_be_used(scorer, batch, rollout):
    expected = scorer(batch, rollout, 0)
    with contextlib.suppress(ZeroDivisionError), scorer.stream(batch, G, 0) as scoring:
        scoring.add(0, [[9]] * G)
        raise ZeroDivisionError
    assert_same(scorer(batch, rollout, 0), expected)


def test_a_prompt_added_twice_is_refused(scorer, batch, rollout):
    with scorer.stream(batch, G, 0) as scoring:
        scoring.add(0, ids_of(rollout, 0))
        with pytest.raises(ValueError, match="are not all missing"):
            scoring.add(0, ids_of(rollout, 0))


@pytest.fixture
def stopping(functions, batch, rollout):
    """A scoring in which the one added prompt has stopped the run already."""
    pool = RewardPool(functions, workers=1, on_error="stop")
    with pool, Scorer(pool, None, Characters()).stream(batch, G, 0) as scoring:
        scoring.add(3, ids_of(rollout, 3))
        assert scoring._rows._done.wait(60)
        yield scoring


def test_a_reward_that_stops_the_run_stops_the_sampling(stopping, rollout):
    with pytest.raises(UserError, match="three is too much"):
        stopping.add(4, ids_of(rollout, 4))


def test_on_several_hosts_a_reward_stops_the_run_only_after_sampling(second_of_two, stopping, rollout):
    stopping.add(4, ids_of(rollout, 4))
    stopping.add(0, ids_of(rollout, 0))
    with pytest.raises(UserError, match="three is too much"):
        stopping.finish(rollout)


def test_a_failure_on_another_host_ends_this_one_too(second_of_two, scorer, batch, rollout, monkeypatch):
    monkeypatch.setattr(hosts, "any_process", lambda flag: True)
    with scorer.stream(batch, G, 0) as scoring, pytest.raises(UserError, match="failed on another host"):
        scoring.finish(rollout)


def test_a_host_scores_no_prompt_of_another(second_of_two, scorer, batch, rollout):
    with scorer.stream(batch, G, 0) as scoring:
        for p in range(P):
            scoring.add(p, ids_of(rollout, p))
        assert scoring._rows._batch.rows == 3 * G
        assert sorted(scoring._texts) == [2, 3, 4]


def test_only_a_row_without_any_score_and_without_a_failure_is_unscored(scorer, batch, rollout):
    scored = scorer(batch, rollout, trainer_state=0)
    values = np.array([[[1, np.nan], [np.nan, 0]], [[np.nan, np.nan], [2, 3]]], np.float32)
    with_values = lambda failures: dataclasses.replace(scored, values=values, failures=failures)
    assert with_values({}).unscored(real=2) == (1, 0)
    assert with_values({}).unscored(real=1) is None, "prompts that only pad the batch are no rows"
    assert with_values({"rewards/f/errors": 1}).unscored(real=2) is None
