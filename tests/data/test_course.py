"""The course: what comes when, who sits out, when a stage ends; and that its standing is all it remembers."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curriculum.pass_rate_filter import Screen
from grpo_jax.data.curriculum.sampler import Course, Standing
from grpo_jax.data.curriculum.stages import Stage, Trigger
from grpo_jax.data.prompts import Prompts

NAN = math.nan


class Characters:
    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def prompts_of(*sizes):
    """A domain of each size; one without a name where there is one size."""
    parts = {f"d{i}": [{"prompt": f"{i}.{n}"} for n in range(size)] for i, size in enumerate(sizes)}
    return Prompts(parts if len(sizes) > 1 else parts["d0"], Characters(), max_prompt_length=30)


def through_json(at):
    return Standing(**json.loads(json.dumps(at.noted())))


def rows(course, tickets):
    return [ticket % course.prompts.rows for ticket in tickets]


def took(course, at, count, rate=lambda row: NAN, done=1, step=(0.0, 0.0)):
    """(rows of a step, standing after it), where `rate` says which share of a row's 4 completions succeeds."""
    tickets, at = course.draw(at, count)
    shares = [rate(row) for row in rows(course, tickets)]
    successes = [[float(i < share * 4) if share == share else NAN for i in range(4)] for share in shares]
    return rows(course, tickets), course.learn(at, done, tickets, np.array(successes), step)


# ---- the sequence ----


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tickets_depend_on_how_they_are_portioned_or_on_the_way_through_a_checkpoint(
    sizes, cuts, seed, shuffle
):
    course = Course(prompts_of(*sizes), seed=seed, shuffle=shuffle)
    whole, end = course.draw(course.begin(), sum(cuts))
    at, pieces = course.begin(), []
    for count in cuts:
        tickets, at = course.draw(through_json(at), count)
        pieces += tickets
    assert pieces == whole
    assert through_json(at) == through_json(end)
    assert len(set(whole)) == len(whole), "a row that comes again has another ticket"
    assert at.total == len(whole)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_of_a_mixture_loses_or_repeats_a_row(sizes, epochs, seed):
    """In proportion to their prompts, all domains end their epochs together."""
    course = Course(prompts_of(*sizes), seed=seed)
    tickets, _ = course.draw(course.begin(), epochs * sum(sizes))
    assert sorted(tickets) == list(range(epochs * sum(sizes)))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    count=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_a_domain_is_a_draw_or_more_away_from_its_share(sizes, weights, count):
    prompts = prompts_of(*sizes)
    weights = weights[: len(sizes)]
    stage = Stage("", tuple(domain.rows for domain in prompts.domains), tuple(weights))
    course = Course(prompts, [stage])
    tickets, _ = course.draw(course.begin(), count)
    drawn = Counter(prompts.domain_of(row) for row in rows(course, tickets))
    for d, weight in enumerate(weights):
        assert abs(drawn[d] - count * weight / sum(weights)) < len(sizes)


def test_a_domain_without_weight_comes_up():
    prompts = prompts_of(3, 3)
    course = Course(prompts, [Stage("", tuple(d.rows for d in prompts.domains), (0.0, 2.0))])
    assert set(rows(course, course.draw(course.begin(), 50)[0])) == {3, 4, 5}


def test_domains_of_one_size_share_an_order():
    course = Course(prompts_of(40, 40))
    order = rows(course, course.draw(course.begin(), 80)[0])
    assert [row for row in order if row < 40] != [row - 40 for row in order if row >= 40]


# ---- who sits out ----


def epochs(course, rates, count):
    """The rows of each epoch, one draw at a time; `rates[row]`, or a function of (row, epoch)."""
    found, at = [[] for _ in range(count)], course.begin()
    while True:
        tickets, after = course.draw(at, 1)
        row, number = tickets[0] % course.prompts.rows, tickets[0] // course.prompts.rows
        if number >= count:
            return [sorted(each) for each in found]
        found[number].append(row)
        rate = rates(row, number) if callable(rates) else rates[row]
        group = np.array([[float(i < rate * 4) if rate == rate else NAN for i in range(4)]])
        at = course.learn(through_json(after), 1, tickets, group, (0.0, 0.0))


def test_history_resampling_keeps_a_solved_prompt_or_drops_another():
    """All right: out for good. Mixed, all wrong, and unknown: they stay."""
    course = Course(prompts_of(4), screens=[Screen(high=1.0)])
    assert epochs(course, {0: 1.0, 1: 0.5, 2: 0.0, 3: NAN}, 3) == [[0, 1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_a_prompt_solved_later_stays():
    course = Course(prompts_of(3), screens=[Screen(high=1.0)])
    rates = lambda row, number: float(row == number)
    assert epochs(course, rates, 3) == [[0, 1, 2], [1, 2], [2]]


def test_a_pool_that_is_used_up_ends_the_run():
    course = Course(prompts_of(2), screens=[Screen(high=1.0)])
    assert epochs(course, {0: 1.0, 1: 1.0}, 3) == [[0, 1], [0, 1], [0, 1]]


def test_bounds_of_the_window_are_inside_it():
    course = Course(prompts_of(5), screens=[Screen(0.25, 0.75)])
    assert epochs(course, {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}, 2) == [[0, 1, 2, 3, 4], [2]]


def test_rates_that_the_data_bring_count_too_late_or_for_too_long():
    """From the first epoch on; until the row itself was seen."""
    known = {0: 0.0, 1: 0.5, 2: 1.0}
    course = Course(prompts_of(4), screens=[Screen(0.1, 0.9, known=known)])
    assert epochs(course, lambda row, number: {1: 1.0, 3: 0.5}[row], 2) == [[1, 3], [3]]


@pytest.mark.parametrize("retry", [1, 2])
def test_a_prompt_left_out_comes_back_early_or_late(retry):
    course = Course(prompts_of(2), screens=[Screen(high=1.0, retry=retry)])
    found = epochs(course, {0: 1.0, 1: 0.5}, 2 * retry + 3)
    back = [number for number, part in enumerate(found) if 0 in part]
    assert back == list(range(0, 2 * retry + 3, retry + 1))


def test_a_seat_of_the_window_is_lost_by_what_is_seen_within_the_epoch():
    """Who sits out is settled when an epoch begins: an epoch under way keeps its order."""
    course = Course(prompts_of(6), screens=[Screen(high=1.0)], seed=5)
    order = course.draw(course.begin(), 6)[0]
    at, seen = course.begin(), []
    for _ in range(6):
        row, at = took(course, at, 1, lambda row: 1.0)
        seen += row
    assert seen == order


# ---- stages ----


def staged(prompts, *parts):
    """Stages of (rows, trigger)."""
    return Course(
        prompts, [Stage("", (np.array(rows),), (1.0,), until) for rows, until in parts], shuffle=False
    )


def test_a_size_curriculum_has_an_epoch_too_many():
    """One epoch each; the last stage has no end of its own."""
    course = staged(
        prompts_of(6), ([0, 1], Trigger(epochs=1)), ([2, 3, 4], Trigger(epochs=2)), ([5], Trigger())
    )
    at, seen = course.begin(), []
    for done in range(1, 13):
        row, at = took(course, at, 1, done=done)
        seen += row
    assert seen == [0, 1, 2, 3, 4, 2, 3, 4, 5, 5, 5, 5]
    assert not at.over


def test_the_end_of_the_last_stage_is_not_the_end():
    course = staged(prompts_of(2), ([0], Trigger(step=1)), ([1], Trigger(step=3)))
    at, over = course.begin(), []
    for done in range(1, 4):
        _, at = took(course, at, 1, done=done)
        over.append(at.over)
    assert over == [False, False, True]


def test_a_domain_that_stays_the_same_begins_anew():
    """DeepScaleR: only the lengths change, and the place in the data carries over."""
    course = staged(prompts_of(5), (range(5), Trigger(step=1)), (range(5), Trigger()))
    first, at = took(course, course.begin(), 3)
    assert at.stage == 1
    assert first + took(course, at, 2)[0] == [0, 1, 2, 3, 4]


def test_rows_seen_in_an_earlier_stage_share_its_tickets():
    course = staged(prompts_of(3), ([0, 1], Trigger(step=1)), ([0, 1, 2], Trigger()))
    tickets, at = course.draw(course.begin(), 2)
    at = course.learn(at, 1, tickets, np.empty((2, 0)), (0.0, 0.0))
    assert course.draw(at, 3)[0] == [3, 4, 5]


@pytest.mark.parametrize(
    ("rewards", "ends"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], None),
        ([0, 0, 1, 1, 1, 1], 6),
        ([5, 5, 5, 5], 4),
        ([0, 1, 2, 3, 3, NAN, 3, 3], 8),
        ([9, 0, 0, 0], 4),
    ],
)
def test_a_plateau_is_missed_or_seen_where_the_reward_rises(rewards, ends):
    """Windows of two steps, a gain of half a point; a step without a reward is none."""
    course = staged(prompts_of(1), ([0], Trigger(plateau=0.5, window=2)), ([0], Trigger()))
    at, found = course.begin(), None
    for done, reward in enumerate(rewards, start=1):
        _, at = took(course, through_json(at), 1, done=done, step=(float(reward), 0.0))
        found = found or (done if at.stage else None)
    assert found == ends


def test_completions_that_press_against_the_limit_do_not_lengthen_the_context():
    course = staged(prompts_of(1), ([0], Trigger(clipped=0.5, window=3)), ([0], Trigger()))
    at, stages = course.begin(), []
    for done, clipped in enumerate([0.9, 0.0, 0.0, 0.9, 0.9], start=1):
        _, at = took(course, through_json(at), 1, done=done, step=(0.0, clipped))
        stages.append(at.stage)
    assert stages == [0, 0, 0, 0, 1]


def test_prompts_that_come_again_are_drawn_late_or_counted_twice():
    course = Course(prompts_of(4), shuffle=False)
    _, at = course.draw(course.begin(), 2)
    tickets, at = course.draw(Standing(**{**at.noted(), "again": [7, 6, 5]}), 4)
    assert tickets == [7, 6, 5, 2]
    assert (at.total, list(at.again)) == (3, [])
