"""Rollouts in segments: rows leave, others come, the rest is compacted, the cache grows; no token changes."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from grpo_jax.rollout import decoding, row_table
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.state import Vocabulary
from grpo_jax.rollout.stopping import Stop
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, shardings

P, G, TP, WIDTH, REAL, PAD = 8, 4, 5, 24, 37, 1
LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
UIDS = np.arange(P, dtype=np.uint32) * 7
PROMPTS = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)
BATCH = SimpleNamespace(tokens=PROMPTS, lengths=LENGTHS, uids=UIDS)
ONE_DEVICE = {"data": 1}

ENDS = np.array(
    [
        [WIDTH + 5, 1, 2, 3],  # the first has no end
        [2, 2, WIDTH, 2],
        [9, 9, 9, 9],
        [9, 9, 9, 9],
        [1, 5, 9, 13],
        [17, 21, 4, 8],
        [12, 16, 20, 24],
        [3, 1, 1, 3],
    ]
)
"""[P,G]: the number of the token with which each completion ends: prompts with one long row, equal and unequal ones."""


@pytest.fixture(autouse=True, scope="module")
def _small_caches():
    """Eight slots at first, so that the ring grows within the completions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_table, "_MIN_SLOTS", 8)
        patch.setattr(row_table, "_MIN_GROWTH", 8)
        yield


def ending(ends):
    """`sample_tokens`, but the completion of prompt p and sample g ends with token number ends[p,g], and no earlier."""
    real, ends_of_rows = decoding.sample_tokens, jnp.asarray(ends).reshape(-1)
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    keys_of_rows = jax.random.key_data(decoding.row_keys(step_key, jnp.asarray(UIDS), G)).reshape(P * G, -1)

    def sample_tokens(keys, position, logits, *given, **named):
        token, logprob = real(keys, position, logits, *given, **named)
        row = (jax.random.key_data(keys)[..., None, :] == keys_of_rows).all(-1).argmax(-1)  # [P,G]
        last = position == ends_of_rows[row] - 1
        return jnp.where(last, 3, jnp.where(token == 3, 7, token)), logprob

    return sample_tokens


def new_sampler(tiny, segment, rows=0, sizes=ONE_DEVICE, cache_dtype="auto"):
    return ContinuousBatchingSampler(
        tiny,
        Vocabulary((3,), PAD, REAL),
        SamplingParams(top_p=0.95),
        num_generations=G,
        max_completion_length=WIDTH,
        mesh=make_mesh(sizes),
        seed=0,
        segment=segment,
        rows=rows,
        cache_dtype=cache_dtype,
    )


def rollout_of(sampler, params, limits=None, **named):
    with jax.set_mesh(sampler.mesh):
        laid = jax.device_put(params, shardings(params, ROLLOUT_RULES, sampler.mesh))
        return sampler(laid, BATCH, step=0, limits=limits, **named)


def ended_rollout(sampler, params, ends=ENDS, **named):
    """The rollout of a sampler whose completions end by `ends`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "sample_tokens", ending(ends))
        return rollout_of(sampler, params, **named)


@pytest.fixture(scope="module")
def ended(tiny, tiny_params):
    """`ended(segment, rows, sizes, cache_dtype)`: the rollout that ends by ENDS, sampled once for all tests,
    and so is compiled once."""

    @functools.cache
    def sampled(segment, rows=0, sizes=(("data", 1),), cache_dtype="auto"):
        return ended_rollout(new_sampler(tiny, segment, rows, dict(sizes), cache_dtype), tiny_params)

    return lambda segment, rows=0, sizes=ONE_DEVICE, cache_dtype="auto": sampled(
        segment, rows, tuple(sizes.items()), cache_dtype
    )


def assert_same(ours, theirs, atol=3e-6):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.finished, theirs.finished)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=atol)


def test_completions_end_where_the_model_ends_them(ended):
    whole = ended(0)
    np.testing.assert_array_equal(whole.lengths, np.minimum(ENDS, WIDTH))
    np.testing.assert_array_equal(whole.finished, ENDS <= WIDTH)


@pytest.mark.parametrize(
    ("segment", "rows", "sizes"),
    [(7, 0, ONE_DEVICE), (4, 8, ONE_DEVICE), (8, 0, {"data": 8}), (8, 8, {"fsdp": 2, "tensor": 4})],
    ids=str,
)
def test_segments_sample_the_same_tokens_as_one_program(ended, segment, rows, sizes):
    assert_same(ended(segment, rows, sizes), ended(0))


def test_segments_with_an_int8_cache_sample_the_same_tokens(ended):
    """A row's keys and values are rounded by themselves, whatever table it stands in."""
    int8 = ended(0, cache_dtype="int8")
    other = ended(7, 8, {"data": 2, "fsdp": 2, "tensor": 2}, "int8")
    # Products of other shapes sum in another order: now and then a value rounds to the next of 255 steps.
    assert_same(other, int8, atol=3e-4)
    gaps = np.abs(other.logprobs - int8.logprobs).max(-1)
    assert np.mean(gaps < 3e-6) > 0.9
    plain = ended(0)
    # The first token is read before anything is rounded.
    np.testing.assert_allclose(int8.logprobs[..., 0], plain.logprobs[..., 0], atol=1e-6)
    same = (int8.tokens[..., :2] == plain.tokens[..., :2]).all(-1) & (plain.lengths > 1)
    gap = np.abs(int8.logprobs - plain.logprobs)[same, 1]
    assert same.sum() > 0.8 * (plain.lengths > 1).sum()
    assert 1e-6 < gap.mean() < 0.02


def test_a_prompts_own_seed_gives_the_same_tokens_on_any_mesh(tiny, tiny_params, ended):
    seeds = [7, 7, *range(P - 2)]
    here = ended_rollout(new_sampler(tiny, 7), tiny_params, seeds=seeds)
    there = ended_rollout(new_sampler(tiny, 8, sizes={"data": 8}), tiny_params, seeds=seeds)
    assert_same(there, here)
    assert not np.array_equal(here.tokens, ended(0).tokens)


@pytest.fixture(scope="module")
def samplers(tiny, tiny_params):
    """Samplers that share their compiled programs among the examples, and the longest rollout."""
    longest = rollout_of(new_sampler(tiny, 0), tiny_params)
    return [new_sampler(tiny, segment, rows) for segment, rows in ((3, 0), (8, 12))], longest


@settings(max_examples=6, deadline=None)
@given(strategies.integers(0, 1), strategies.integers(0, 2**32 - 1))
def test_lengths_of_other_rows_change_no_token(samplers, tiny_params, which, seed):
    """Limits cut rows anywhere: what was drawn before is a prefix of the longest rollout, in any table."""
    several, longest = samplers
    rng = np.random.default_rng(seed)
    limits = np.minimum(rng.geometric(rng.uniform(0.03, 0.9), (P, G)), WIDTH).astype(np.int32)
    limits[rng.random((P, G)) < 0.1] = 0
    ours = rollout_of(several[which], tiny_params, limits)
    np.testing.assert_array_equal(ours.lengths, np.minimum(limits, longest.lengths))
    kept = np.arange(WIDTH) < ours.lengths[..., None]
    np.testing.assert_array_equal(ours.tokens, np.where(kept, longest.tokens, PAD))
    np.testing.assert_allclose(ours.logprobs, np.where(kept, longest.logprobs, 0), atol=3e-6)
    np.testing.assert_array_equal(ours.finished, longest.finished & (longest.lengths <= limits))


def test_stopping_a_row_changes_no_other_row(samplers, tiny_params):
    """The devices know nothing of stop strings: the host drops such a row, and others take its place."""
    (sampler, *_), longest = samplers
    stop = Stop(("a", "bc"), lambda ids: "".join(chr(97 + i % 4) for i in ids))
    rows_of = zip(longest.tokens.reshape(-1, WIDTH), longest.lengths.flat)
    lengths = np.reshape([stop.end(row[:n].tolist(), 0) or n for row, n in rows_of], (P, G))
    assert (lengths < longest.lengths).any()
    for rows in (0, 4):
        sampler.stop, sampler.rows = stop, rows
        ours = rollout_of(sampler, tiny_params)
        np.testing.assert_array_equal(ours.lengths, lengths)
        kept = np.arange(WIDTH) < ours.lengths[..., None]
        np.testing.assert_array_equal(ours.tokens, np.where(kept, longest.tokens, PAD))
        np.testing.assert_array_equal(ours.finished, longest.finished | (lengths < longest.lengths))
    sampler.stop, sampler.rows = None, 0


def test_each_group_is_reported_once_and_as_soon_as_it_is_complete(samplers, tiny_params, monkeypatch):
    """Each prompt is reported once, with the tokens that the rollout has, and before longer ones are drawn."""
    limits = np.full((P, G), 2, np.int32)
    limits[3] = WIDTH
    reported, segments_then = {}, []
    sampler = samplers[0][0]
    counted = Counted(sampler.programs.decode)
    monkeypatch.setattr(sampler.programs, "decode", counted)

    def on_group(p, ids):
        assert p not in reported
        reported[p] = ids
        segments_then.append(counted.count)

    rollout = rollout_of(sampler, tiny_params, limits, on_group=on_group)
    assert sorted(reported) == list(range(P))
    assert list(reported)[-1] == 3
    assert segments_then[0] <= 2 < segments_then[-1]
    for p, ids in reported.items():
        assert ids == [row[:n].tolist() for row, n in zip(rollout.tokens[p], rollout.lengths[p])]


@pytest.mark.parametrize("rows", [0, 2 * G])
def test_progress_ends_with_all_tokens_and_never_says_too_few_steps_are_left(samplers, tiny_params, rows):
    """`steps_left` is an upper bound, also where prompts wait for a place."""
    limits, said = np.full((P, G), 3, np.int32), []
    limits[1] = WIDTH
    sampler = samplers[0][0]
    before, sampler.rows = sampler.rows, rows
    rollout = rollout_of(sampler, tiny_params, limits, on_progress=said.append)
    sampler.rows = before
    last = said[-1]
    assert (last.ended, last.completions, last.steps_left) == (P * G, P * G, 0)
    assert last.tokens == rollout.lengths.sum()
    assert all(one.steps <= two.steps and one.ended <= two.ended for one, two in itertools.pairwise(said))
    assert all(one.steps + one.steps_left >= rollout.lengths.max() for one in said)


class Counted:
    """A program that counts its calls."""

    def __init__(self, program):
        self.program, self.count, self.compilations = program, 0, 0

    def __call__(self, *given):
        self.count += 1
        return self.program(*given)


@pytest.fixture
def rows_computed(monkeypatch):
    """A list that gets the rows of every decoding step."""
    rows, real = [], decoding.hidden_states

    def counted(cfg, params, tokens, *given, **named):
        if tokens.shape[1] == 1:
            jax.debug.callback(lambda: rows.append(tokens.shape[0]))
        return real(cfg, params, tokens, *given, **named)

    monkeypatch.setattr(decoding, "hidden_states", counted)
    return rows


def test_rows_that_have_ended_are_no_longer_computed(tiny, tiny_params, rows_computed):
    """Rows through the model, segment by segment: they fall as rows leave, one segment late."""
    sampler = new_sampler(tiny, 4)
    ended_rollout(sampler, tiny_params, np.where(np.arange(P * G) == 13, WIDTH, 2).reshape(P, G))
    jax.effects_barrier()
    assert rows_computed == [32] * 8 + [1] * (WIDTH - 9)
    # empty_state, prefill, three sizes of the ring, two programs for each move between them
    assert sampler.compilations <= 9


def test_compaction_keeps_only_the_live_rows_of_each_prompt(tiny, tiny_params, rows_computed):
    one_long_row_each = np.arange(P * G) % G == np.arange(P * G) // G % G
    ended_rollout(new_sampler(tiny, 4), tiny_params, np.where(one_long_row_each, WIDTH, 2).reshape(P, G))
    jax.effects_barrier()
    assert rows_computed == [32] * 8 + [8] * (WIDTH - 9)


def test_waiting_prompts_take_the_places_of_ended_ones(tiny, tiny_params, rows_computed):
    """Of eight rows at a time, seven prompts of two tokens and a long one: no more steps than the long one takes."""
    limits = np.full((P, G), 2, np.int32)
    limits[0] = WIDTH
    rollout_of(new_sampler(tiny, 4, rows=8), tiny_params, limits)
    jax.effects_barrier()
    assert max(rows_computed) == 8
    assert len(rows_computed) <= WIDTH + 4
