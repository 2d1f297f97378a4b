"""Rollouts in segments: rows leave, others come, the rest is compacted, the cache grows; no token changes."""

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

P, G, TP, WIDTH, REAL, PAD = 8, 4, 5, 40, 37, 1
LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
UIDS = np.arange(P, dtype=np.uint32) * 7
PROMPTS = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)
BATCH = SimpleNamespace(tokens=PROMPTS, lengths=LENGTHS, uids=UIDS)


@pytest.fixture(autouse=True, scope="module")
def _small_caches():
    """Eight slots at first, so that the ring grows within forty tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_table, "_MIN_SLOTS", 8)
        patch.setattr(row_table, "_MIN_GROWTH", 8)
        yield


@pytest.fixture
def ends_at(monkeypatch):
    """`ends_at(limits)`: the row of prompt p and sample g ends with its token number limits[p,g]; tokens are drawn
    as ever, but for those that end a row."""
    real = decoding.sample_tokens

    def set_limits(limits):
        of_row = jnp.asarray(limits).reshape(-1)

        def sample_tokens(keys, position, logits, *given, **named):
            token, logprob = real(keys, position, logits, *given, **named)
            row = (jax.random.key_data(keys)[..., None, :] == marks).all(-1).argmax(-1)  # [P,G]
            last = position == of_row[row] - 1
            return jnp.where(last, 3, jnp.where(token == 3, 7, token)), logprob

        uids = jnp.asarray(UIDS)
        marks = jax.random.key_data(
            decoding.row_keys(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), uids, G)
        ).reshape(P * G, -1)
        monkeypatch.setattr(decoding, "sample_tokens", sample_tokens)

    return set_limits


def sample(tiny, params, mesh, segment, rows=0, limits=None, cache_dtype="auto", **named):
    one = engine(tiny, mesh, segment, rows, cache_dtype)
    return one, rollout_of(one, params, mesh, limits, **named)


def engine(tiny, mesh, segment, rows=0, cache_dtype="auto"):
    vocabulary, sizes = Vocabulary((3,), PAD, REAL), {"num_generations": G, "max_completion_length": WIDTH}
    options = {"segment": segment, "rows": rows, "cache_dtype": cache_dtype}
    return ContinuousBatchingSampler(
        tiny, vocabulary, SamplingParams(top_p=0.95), **sizes, mesh=mesh, seed=0, **options
    )


def rollout_of(one, params, mesh, limits=None, **named):
    with jax.set_mesh(mesh):
        laid = jax.device_put(params, shardings(params, ROLLOUT_RULES, mesh))
        return one(laid, BATCH, step=0, limits=limits, **named)


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.finished, theirs.finished)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=3e-6)


LIMITS = {
    "skewed": np.where(np.arange(P * G) % 11 == 0, WIDTH + 5, np.arange(P * G) % 7 + 1).reshape(P, G),
    "one long row": np.where(np.arange(P * G) == 13, WIDTH, 2).reshape(P, G),
    "equal lengths": np.full((P, G), 9),
    "different lengths": (np.arange(P * G) % WIDTH + 1).reshape(P, G),
}


@pytest.mark.parametrize("name", ["equal lengths", "different lengths"])
def test_segments_sample_the_same_tokens_as_one_program(tiny, tiny_params, mesh_1, ends_at, name):
    ends_at(LIMITS[name])
    _, whole = sample(tiny, tiny_params, mesh_1, 0)
    np.testing.assert_array_equal(whole.lengths, np.minimum(LIMITS[name], WIDTH))
    np.testing.assert_array_equal(whole.finished, LIMITS[name] <= WIDTH)
    for segment, rows in ((7, 0), (4, 8)):
        _, parts = sample(tiny, tiny_params, mesh_1, segment, rows)
        assert_same(parts, whole)


@pytest.mark.parametrize(("sizes", "rows"), [({"data": 8}, 0), ({"fsdp": 2, "tensor": 4}, 8)], ids=str)
def test_segments_on_a_mesh_sample_the_same_tokens(tiny, tiny_params, mesh_1, ends_at, sizes, rows):
    ends_at(LIMITS["skewed"])
    _, whole = sample(tiny, tiny_params, mesh_1, 0)
    _, parts = sample(tiny, tiny_params, make_mesh(sizes), 8, rows)
    assert_same(parts, whole)


def test_segments_with_an_int8_cache_sample_the_same_tokens(tiny, tiny_params, mesh_1, ends_at):
    """A row's keys and values are rounded by themselves: whatever table it stands in, to the same numbers."""
    ends_at(LIMITS["skewed"])
    _, whole = sample(tiny, tiny_params, mesh_1, 0, cache_dtype="int8")
    for mesh, segment, rows in ((mesh_1, 7, 8), (make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), 8, 0)):
        _, parts = sample(tiny, tiny_params, mesh, segment, rows, cache_dtype="int8")
        assert_same(parts, whole)
    _, plain = sample(tiny, tiny_params, mesh_1, 0)
    np.testing.assert_allclose(
        whole.logprobs[..., 0], plain.logprobs[..., 0], atol=1e-6
    )  # read before it is rounded
    same = (whole.tokens[..., :2] == plain.tokens[..., :2]).all(-1) & (plain.lengths > 1)
    gap = np.abs(whole.logprobs - plain.logprobs)[same, 1]
    assert same.sum() > 0.8 * (plain.lengths > 1).sum()
    assert 1e-6 < gap.mean() < 0.02


def test_a_prompts_own_seed_gives_the_same_tokens_on_any_mesh(tiny, tiny_params, mesh_1, ends_at):
    ends_at(LIMITS["different lengths"])
    seeds = [7, 7, *range(P - 2)]
    _, here = sample(tiny, tiny_params, mesh_1, 4, seeds=seeds)
    _, there = sample(tiny, tiny_params, make_mesh({"data": 8}), 8, seeds=seeds)
    _, without = sample(tiny, tiny_params, mesh_1, 4)
    assert_same(there, here)
    assert not np.array_equal(here.tokens, without.tokens)


@pytest.fixture(scope="module")
def engines(tiny, tiny_params, mesh_1):
    """Samplers that share their compiled programs among the examples, and the longest rollout."""
    whole = engine(tiny, mesh_1, 0)
    longest = rollout_of(whole, tiny_params, mesh_1)
    ways = [engine(tiny, mesh_1, segment, rows) for segment, rows in ((3, 0), (8, 12), (16, 4))]
    return ways, longest


@settings(max_examples=9, deadline=None)
@given(strategies.integers(0, 2), strategies.integers(0, 2**32 - 1))
def test_lengths_of_other_rows_change_no_token(engines, tiny_params, mesh_1, which, seed):
    """Limits cut rows anywhere: what was drawn before is a prefix of the longest rollout, in any table."""
    ways, longest = engines
    rng = np.random.default_rng(seed)
    limits = np.minimum(rng.geometric(rng.uniform(0.03, 0.9), (P, G)), WIDTH).astype(np.int32)
    limits[rng.random((P, G)) < 0.1] = 0
    ours = rollout_of(ways[which], tiny_params, mesh_1, limits)
    np.testing.assert_array_equal(ours.lengths, np.minimum(limits, longest.lengths))
    kept = np.arange(WIDTH) < ours.lengths[..., None]
    np.testing.assert_array_equal(ours.tokens, np.where(kept, longest.tokens, PAD))
    np.testing.assert_allclose(ours.logprobs, np.where(kept, longest.logprobs, 0), atol=3e-6)
    np.testing.assert_array_equal(ours.finished, longest.finished & (longest.lengths <= limits))


def test_stopping_a_row_changes_no_other_row(engines, tiny_params, mesh_1):
    """The devices know nothing of stop strings: the host drops such a row, and others take its place."""
    (one, *_), longest = engines
    stop = Stop(("a", "bc"), lambda ids: "".join(chr(97 + i % 4) for i in ids))
    rows_of = zip(longest.tokens.reshape(-1, WIDTH), longest.lengths.flat)
    lengths = np.reshape([stop.end(row[:n].tolist(), 0) or n for row, n in rows_of], (P, G))
    assert (lengths < longest.lengths).any()
    for rows in (0, 4):
        one.stop, one.rows = stop, rows
        ours = rollout_of(one, tiny_params, mesh_1)
        np.testing.assert_array_equal(ours.lengths, lengths)
        kept = np.arange(WIDTH) < ours.lengths[..., None]
        np.testing.assert_array_equal(ours.tokens, np.where(kept, longest.tokens, PAD))
        np.testing.assert_array_equal(ours.finished, longest.finished | (lengths < longest.lengths))
    one.stop, one.rows = None, 0


def test_each_group_is_reported_once_and_as_soon_as_it_is_complete(tiny, tiny_params, mesh_1):
    """Each prompt is reported once, with the tokens that the rollout has, and before longer ones are drawn."""
    limits = np.full((P, G), 2, np.int32)
    limits[3] = WIDTH
    reported, lengths_then = {}, []
    one = engine(tiny, mesh_1, 4)
    decode = one.programs.decode

    def on_group(p, ids):
        assert p not in reported
        reported[p] = ids
        lengths_then.append(counted.count)

    counted = Counted(decode)
    one.programs.decode = counted
    rollout = rollout_of(one, tiny_params, mesh_1, limits, on_group=on_group)
    assert sorted(reported) == list(range(P))
    assert list(reported)[-1] == 3
    assert lengths_then[0] <= 2 < lengths_then[-1]
    for p, ids in reported.items():
        assert ids == [row[:n].tolist() for row, n in zip(rollout.tokens[p], rollout.lengths[p])]


class Counted:
    """A program that counts its calls."""

    def __init__(self, program):
        self.program, self.count, self.compilations = program, 0, 0

    def __call__(self, *given):
        self.count += 1
        return self.program(*given)


def test_rows_that_have_ended_are_no_longer_computed(tiny, tiny_params, mesh_1, ends_at, monkeypatch):
    """Rows through the model, segment by segment: they fall as rows leave, one segment late."""
    rows = rows_computed(monkeypatch)
    ends_at(LIMITS["one long row"])
    one, _ = sample(tiny, tiny_params, mesh_1, 4)
    jax.effects_barrier()
    assert rows == [32] * 8 + [1] * (WIDTH - 9)
    assert (
        one.compilations <= 15
    )  # empty_state, prefill, five sizes of the ring, two programs for each move between them


def test_compaction_keeps_only_the_live_rows_of_each_prompt(tiny, tiny_params, mesh_1, ends_at, monkeypatch):
    rows = rows_computed(monkeypatch)
    ends_at(np.where(np.arange(P * G) % G == np.arange(P * G) // G % G, WIDTH, 2).reshape(P, G))
    sample(tiny, tiny_params, mesh_1, 4)
    jax.effects_barrier()
    assert rows == [32] * 8 + [8] * (WIDTH - 9)


def test_waiting_prompts_take_the_places_of_ended_ones(tiny, tiny_params, mesh_1, monkeypatch):
    """Of eight rows at a time, seven prompts of one token and one of forty: no more steps than the long one takes."""
    rows = rows_computed(monkeypatch)
    limits = np.full((P, G), 2, np.int32)
    limits[0] = WIDTH
    sample(tiny, tiny_params, mesh_1, 4, rows=8, limits=limits)
    jax.effects_barrier()
    assert max(rows) == 8
    assert len(rows) <= WIDTH + 4


def rows_computed(monkeypatch):
    """A list that gets the rows of every decoding step."""
    rows, real = [], decoding.hidden_states

    def counted(cfg, params, tokens, *given, **named):
        if tokens.shape[1] == 1:
            jax.debug.callback(lambda: rows.append(tokens.shape[0]))
        return real(cfg, params, tokens, *given, **named)

    monkeypatch.setattr(decoding, "hidden_states", counted)
    return rows
