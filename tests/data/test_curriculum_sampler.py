"""The curriculum sampler: its order, its filters, the ends of its stages; and its state is all that it keeps."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curriculum.pass_rate_filter import PassRateFilter
from grpo_jax.data.curriculum.sampler import CurriculumSampler, SamplerState
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


def through_json(state):
    return SamplerState.from_json(json.loads(json.dumps(state.to_json())))


def rows(curriculum, indices):
    return [index % curriculum.prompts.rows for index in indices]


def take_step(curriculum, state, count, rate=lambda row: NAN, done=1, step=(0.0, 0.0)):
    """(rows of a step, state after it), where `rate` says which share of a row's 4 completions succeeds."""
    indices, state = curriculum.draw(state, count)
    shares = [rate(row) for row in rows(curriculum, indices)]
    successes = [[float(i < share * 4) if share == share else NAN for i in range(4)] for share in shares]
    return rows(curriculum, indices), curriculum.learn(state, done, indices, np.array(successes), step)


# ---- the sequence ----


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_indices_do_not_depend_on_batch_sizes_or_checkpoints(sizes, cuts, seed, shuffle):
    curriculum = CurriculumSampler(prompts_of(*sizes), seed=seed, shuffle=shuffle)
    whole, end = curriculum.draw(curriculum.begin(), sum(cuts))
    state, pieces = curriculum.begin(), []
    for count in cuts:
        indices, state = curriculum.draw(through_json(state), count)
        pieces += indices
    assert pieces == whole
    assert through_json(state) == through_json(end)
    assert len(set(whole)) == len(whole), "a row that comes again has another index"
    assert state.total == len(whole)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_of_a_mixture_never_loses_or_repeats_a_row(sizes, epochs, seed):
    """In proportion to their prompts, all domains end their epochs together."""
    curriculum = CurriculumSampler(prompts_of(*sizes), seed=seed)
    indices, _ = curriculum.draw(curriculum.begin(), epochs * sum(sizes))
    assert sorted(indices) == list(range(epochs * sum(sizes)))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    count=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_every_domain_stays_close_to_its_share_of_the_draws(sizes, weights, count):
    prompts = prompts_of(*sizes)
    weights = weights[: len(sizes)]
    stage = Stage("", tuple(domain.rows for domain in prompts.domains), tuple(weights))
    curriculum = CurriculumSampler(prompts, [stage])
    indices, _ = curriculum.draw(curriculum.begin(), count)
    drawn = Counter(prompts.domain_of(row) for row in rows(curriculum, indices))
    for d, weight in enumerate(weights):
        assert abs(drawn[d] - count * weight / sum(weights)) < len(sizes)


def test_a_domain_of_weight_zero_is_never_drawn():
    prompts = prompts_of(3, 3)
    curriculum = CurriculumSampler(prompts, [Stage("", tuple(d.rows for d in prompts.domains), (0.0, 2.0))])
    assert set(rows(curriculum, curriculum.draw(curriculum.begin(), 50)[0])) == {3, 4, 5}


def test_domains_of_the_same_size_are_shuffled_differently():
    curriculum = CurriculumSampler(prompts_of(40, 40))
    order = rows(curriculum, curriculum.draw(curriculum.begin(), 80)[0])
    assert [row for row in order if row < 40] != [row - 40 for row in order if row >= 40]


# ---- filters ----


def epochs(curriculum, rates, count):
    """The rows of each epoch, one draw at a time; `rates[row]`, or a function of (row, epoch)."""
    found, state = [[] for _ in range(count)], curriculum.begin()
    while True:
        indices, after = curriculum.draw(state, 1)
        row, number = indices[0] % curriculum.prompts.rows, indices[0] // curriculum.prompts.rows
        if number >= count:
            return [sorted(each) for each in found]
        found[number].append(row)
        rate = rates(row, number) if callable(rates) else rates[row]
        group = np.array([[float(i < rate * 4) if rate == rate else NAN for i in range(4)]])
        state = curriculum.learn(through_json(after), 1, indices, group, (0.0, 0.0))


def test_history_resampling_drops_only_the_prompts_that_are_solved():
    """All right: it never comes back. Mixed, all wrong, or unknown: it stays."""
    curriculum = CurriculumSampler(prompts_of(4), filters=[PassRateFilter(high=1.0)])
    assert epochs(curriculum, {0: 1.0, 1: 0.5, 2: 0.0, 3: NAN}, 3) == [[0, 1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_a_prompt_solved_in_a_later_epoch_is_dropped_too():
    curriculum = CurriculumSampler(prompts_of(3), filters=[PassRateFilter(high=1.0)])
    rates = lambda row, number: float(row == number)
    assert epochs(curriculum, rates, 3) == [[0, 1, 2], [1, 2], [2]]


def test_once_every_prompt_is_left_out_all_come_back():
    curriculum = CurriculumSampler(prompts_of(2), filters=[PassRateFilter(high=1.0)])
    assert epochs(curriculum, {0: 1.0, 1: 1.0}, 3) == [[0, 1], [0, 1], [0, 1]]


def test_the_bounds_of_a_pass_rate_filter_are_exclusive():
    curriculum = CurriculumSampler(prompts_of(5), filters=[PassRateFilter(0.25, 0.75)])
    assert epochs(curriculum, {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}, 2) == [[0, 1, 2, 3, 4], [2]]


def test_pass_rates_of_the_data_hold_until_a_row_is_sampled():
    """From the first epoch on, until the row has a rate of this run."""
    known = {0: 0.0, 1: 0.5, 2: 1.0}
    curriculum = CurriculumSampler(prompts_of(4), filters=[PassRateFilter(0.1, 0.9, known=known)])
    assert epochs(curriculum, lambda row, number: {1: 1.0, 3: 0.5}[row], 2) == [[1, 3], [3]]


@pytest.mark.parametrize("retry", [1, 2])
def test_a_prompt_that_was_left_out_comes_back_after_retry_epochs(retry):
    curriculum = CurriculumSampler(prompts_of(2), filters=[PassRateFilter(high=1.0, retry=retry)])
    found = epochs(curriculum, {0: 1.0, 1: 0.5}, 2 * retry + 3)
    back = [number for number, part in enumerate(found) if 0 in part]
    assert back == list(range(0, 2 * retry + 3, retry + 1))


def test_filters_do_not_change_an_epoch_under_way():
    """Filters are applied when an epoch begins."""
    curriculum = CurriculumSampler(prompts_of(6), filters=[PassRateFilter(high=1.0)], seed=5)
    order = curriculum.draw(curriculum.begin(), 6)[0]
    state, seen = curriculum.begin(), []
    for _ in range(6):
        row, state = take_step(curriculum, state, 1, lambda row: 1.0)
        seen += row
    assert seen == order


# ---- stages ----


def staged(prompts, *parts):
    """Stages of (rows, trigger)."""
    return CurriculumSampler(
        prompts, [Stage("", (np.array(rows),), (1.0,), until) for rows, until in parts], shuffle=False
    )


def test_a_stage_lasts_the_epochs_of_its_trigger_and_the_last_stage_goes_on():
    """One epoch each; the last stage has no end of its own."""
    curriculum = staged(
        prompts_of(6), ([0, 1], Trigger(epochs=1)), ([2, 3, 4], Trigger(epochs=2)), ([5], Trigger())
    )
    state, seen = curriculum.begin(), []
    for done in range(1, 13):
        row, state = take_step(curriculum, state, 1, done=done)
        seen += row
    assert seen == [0, 1, 2, 3, 4, 2, 3, 4, 5, 5, 5, 5]
    assert not state.over


def test_the_curriculum_is_over_when_its_last_stage_ends():
    curriculum = staged(prompts_of(2), ([0], Trigger(step=1)), ([1], Trigger(step=3)))
    state, over = curriculum.begin(), []
    for done in range(1, 4):
        _, state = take_step(curriculum, state, 1, done=done)
        over.append(state.over)
    assert over == [False, False, True]


def test_an_unchanged_domain_continues_its_epoch_in_the_next_stage():
    """As in DeepScaleR, where only the lengths change from stage to stage."""
    curriculum = staged(prompts_of(5), (range(5), Trigger(step=1)), (range(5), Trigger()))
    first, state = take_step(curriculum, curriculum.begin(), 3)
    assert state.stage == 1
    assert first + take_step(curriculum, state, 2)[0] == [0, 1, 2, 3, 4]


def test_rows_seen_in_an_earlier_stage_get_new_sample_indices():
    curriculum = staged(prompts_of(3), ([0, 1], Trigger(step=1)), ([0, 1, 2], Trigger()))
    indices, state = curriculum.draw(curriculum.begin(), 2)
    state = curriculum.learn(state, 1, indices, np.empty((2, 0)), (0.0, 0.0))
    assert curriculum.draw(state, 3)[0] == [3, 4, 5]


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
def test_a_stage_ends_on_a_plateau_and_not_while_the_reward_rises(rewards, ends):
    """Windows of two steps, a gain of half a point; a step without a reward is none."""
    curriculum = staged(prompts_of(1), ([0], Trigger(plateau=0.5, window=2)), ([0], Trigger()))
    state, found = curriculum.begin(), None
    for done, reward in enumerate(rewards, start=1):
        _, state = take_step(curriculum, through_json(state), 1, done=done, step=(float(reward), 0.0))
        found = found or (done if state.stage else None)
    assert found == ends


def test_a_high_share_of_clipped_completions_ends_a_stage():
    curriculum = staged(prompts_of(1), ([0], Trigger(clipped=0.5, window=3)), ([0], Trigger()))
    state, stages = curriculum.begin(), []
    for done, clipped in enumerate([0.0, 0.0, 0.0, 0.9, 0.9], start=1):
        _, state = take_step(curriculum, through_json(state), 1, done=done, step=(0.0, clipped))
        stages.append(state.stage)
    assert stages == [0, 0, 0, 0, 1]


def test_prompts_to_redraw_come_first_and_not_counted_again():
    curriculum = CurriculumSampler(prompts_of(4), shuffle=False)
    _, state = curriculum.draw(curriculum.begin(), 2)
    indices, state = curriculum.draw(SamplerState.from_json({**state.to_json(), "again": [7, 6, 5]}), 4)
    assert indices == [7, 6, 5, 2]
    assert (state.total, list(state.to_redraw)) == (3, [])
