"""Rollouts in segments: rows leave, the rest moves together, the cache grows, and every token is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from grpo_jax.rollout import decoding, sampler
from grpo_jax.rollout.decoding import Vocabulary
from grpo_jax.rollout.sampler import Sampler, _Place
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, shardings

P, G, TP, WIDTH, REAL, PAD = 8, 4, 5, 40, 37, 1
LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
UIDS = np.arange(P, dtype=np.uint32) * 7
PROMPTS = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _small_caches(monkeypatch):
    """Eight places at first, so that the cache grows within forty tokens."""
    monkeypatch.setattr(sampler, "_FEWEST", 8)


@pytest.fixture
def ends_at(monkeypatch):
    """`ends_at(limits)`: the row of prompt p and sample g ends with its token number limits[p,g]; tokens are drawn
    as ever, but for those that end a row."""
    real = decoding.draw

    def set_limits(limits):
        of_row = jnp.asarray(limits).reshape(-1)

        def draw(keys, position, logits, how):
            token, logprob = real(keys, position, logits, how)
            row = (jax.random.key_data(keys)[..., None, :] == marks).all(-1).argmax(-1)  # [P,G]
            last = position == of_row[row] - 1
            return jnp.where(last, 3, jnp.where(token == 3, 7, token)), logprob

        uids = jnp.asarray(UIDS)
        marks = jax.random.key_data(
            decoding.row_keys(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), uids, G)
        ).reshape(P * G, -1)
        monkeypatch.setattr(decoding, "draw", draw)

    return set_limits


def drawn(tiny, params, mesh, segment, how=Sampling(top_p=0.95)):  # noqa: B008
    one = Sampler(
        tiny, Vocabulary((3,), PAD, REAL), how, samples=G, width=WIDTH, mesh=mesh, seed=0, segment=segment
    )
    with jax.set_mesh(mesh):
        laid = jax.device_put(params, shardings(params, ROLLOUT_RULES, mesh))
        return one, one(laid, PROMPTS, LENGTHS, UIDS, step=0)


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.finished, theirs.finished)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=3e-6)


LIMITS = {
    "skewed": np.where(np.arange(P * G) % 11 == 0, WIDTH + 5, np.arange(P * G) % 7 + 1).reshape(P, G),
    "one row goes on": np.where(np.arange(P * G) == 13, WIDTH, 2).reshape(P, G),
    "all to the end": np.full((P, G), WIDTH + 1),
    "all at once": np.full((P, G), 9),
    "each another": (np.arange(P * G) % WIDTH + 1).reshape(P, G),
}


@pytest.mark.parametrize("name", LIMITS)
def test_segments_draw_other_tokens_than_the_whole(tiny, tiny_params, mesh_1, ends_at, name):
    ends_at(LIMITS[name])
    _, whole = drawn(tiny, tiny_params, mesh_1, 0)
    np.testing.assert_array_equal(whole.lengths, np.minimum(LIMITS[name], WIDTH))
    np.testing.assert_array_equal(whole.finished, LIMITS[name] <= WIDTH)
    for segment in (4, 7, 16):
        _, parts = drawn(tiny, tiny_params, mesh_1, segment)
        assert_same(parts, whole)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_a_mesh_draws_other_tokens_in_segments(tiny, tiny_params, mesh_1, ends_at, sizes):
    ends_at(LIMITS["skewed"])
    _, whole = drawn(tiny, tiny_params, mesh_1, 0)
    _, parts = drawn(tiny, tiny_params, make_mesh(sizes), 8)
    assert_same(parts, whole)


def test_rows_that_have_ended_are_still_computed(tiny, tiny_params, mesh_1, ends_at, monkeypatch):
    """Rows through the model, segment by segment: they fall as rows leave, one segment late."""
    rows, real = [], decoding.hidden_states

    def counted(cfg, params, tokens, *given, **named):
        if tokens.shape[1] == 1:
            jax.debug.callback(lambda: rows.append(tokens.shape[0]))
        return real(cfg, params, tokens, *given, **named)

    monkeypatch.setattr(decoding, "hidden_states", counted)
    ends_at(LIMITS["one row goes on"])
    engine, _ = drawn(tiny, tiny_params, mesh_1, 4)
    jax.effects_barrier()
    assert rows == [32] * 8 + [1] * (WIDTH - 9)
    assert engine.compilations <= 9  # begin; a program for each shape on the way, and the moves between them


@settings(max_examples=200, deadline=None)
@given(
    strategies.sampled_from([1, 2, 4, 6, 8, 12]),
    strategies.integers(1, 9),
    strategies.sampled_from([1, 2, 4]),
    strategies.integers(0, 2**32 - 1),
)
def test_a_place_loses_a_row_that_goes_on(prompts_a_shard, G, shards, seed):
    P, rng = prompts_a_shard * shards, np.random.default_rng(seed)
    ends = rng.geometric(rng.uniform(0.05, 0.9), (P, G))
    place = _Place.of_all(P, G)
    for time in range(ends.max()):
        finished = ends <= time
        found = place.without(finished, shards)
        if found is None:
            continue
        prompts, _, kept = found
        assert 2 * kept.samples.size <= place.samples.size
        assert len(prompts) % shards == 0
        np.testing.assert_array_equal(kept.prompts, place.prompts[prompts])
        here = {(p, g) for p, row in zip(kept.prompts, kept.samples) for g in row}
        assert len(here) == kept.samples.size, "no row twice"
        assert set(zip(*np.nonzero(~finished))) <= here
        place = kept
