"""Sampled tokens follow their distribution under every filter; filtered tokens are never sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grpo_jax.rollout.sampling import (
    SamplingParams,
    _filtered_weights,
    _nucleus_threshold,
    _search,
    row_keys,
    sample_tokens,
)

FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.7),
    SamplingParams(top_k=4),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.15),
    SamplingParams(0.8, top_k=9, top_p=0.9, min_p=0.05),
    SamplingParams(1.3, top_k=6, top_p=0.6),
]
name_of = lambda sampling: f"T{sampling.temperature} k{sampling.top_k} p{sampling.top_p} m{sampling.min_p}"


def expected(logits, sampling):
    """Probabilities in float64 by a full sort, in transformers' order: temperature, top-k, top-p, min-p."""
    p = np.exp((logits - logits.max()) / sampling.temperature).astype(np.float64)
    if sampling.top_k:
        p[p < np.sort(p)[-sampling.top_k :][0]] = 0
    order = np.argsort(-p)
    above = np.cumsum(p[order]) - p[order]  # the mass of what is likelier
    p[order[above >= sampling.top_p * p.sum()]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


def drawn(logits, sampling, number=20000, seed=0):
    """`number` independent draws [number] from one row of logits, and their log-probs."""
    tokens, logprobs = compiled_draws(sampling, number)(jax.random.key(seed), logits)
    return np.asarray(tokens).ravel(), np.asarray(logprobs).ravel()


@functools.cache
def compiled_draws(sampling, number):
    @jax.jit
    def draws(key, logits):
        keys = row_keys(key, jnp.arange(number // 50, dtype=jnp.uint32), 50)
        return sample_tokens(
            keys, jnp.int32(0), jnp.broadcast_to(logits, (*keys.shape, len(logits))), sampling
        )

    return draws


def p_value(tokens, probabilities):
    """Chi-square, with the tokens expected fewer than ten times counted as one."""
    from scipy.stats import chisquare

    counts, mean = np.bincount(tokens, minlength=len(probabilities)), len(tokens) * probabilities
    assert len(counts) == len(mean)
    rare = mean < 10
    observed, mean = (np.append(x[~rare], x[rare].sum()) for x in (counts, mean))
    if mean[-1] == 0:
        assert observed[-1] == 0
        observed, mean = observed[:-1], mean[:-1]
    return chisquare(observed, mean * observed.sum() / mean.sum()).pvalue


@functools.cache
def logits_of(width):
    rng = np.random.default_rng(width)
    logits = rng.normal(0, 1.5, width).astype(np.float32)
    logits[rng.permutation(width)[: width // 3]] -= 6  # long stretches that hardly count
    return logits


@pytest.mark.parametrize("sampling", FILTERS, ids=name_of)
def test_tokens_of_a_small_vocabulary_follow_their_probabilities(sampling):
    tokens, _ = drawn(logits_of(23), sampling)
    assert p_value(tokens, expected(logits_of(23), sampling)) > 1e-3


@pytest.mark.parametrize("sampling", [FILTERS[0], FILTERS[1], FILTERS[6]], ids=name_of)
def test_tokens_of_several_vocabulary_blocks_follow_their_probabilities(sampling):
    tokens, _ = drawn(logits_of(1500), sampling, 10000)
    probabilities = expected(logits_of(1500), sampling)
    assert p_value(tokens, probabilities) > 1e-3
    blocks = np.add.reduceat(probabilities, [0, 512, 1024])
    assert p_value(tokens // 512, blocks) > 1e-3


def test_the_chi_square_test_detects_a_wrong_temperature():
    tokens, _ = drawn(logits_of(23), SamplingParams())
    assert p_value(tokens, expected(logits_of(23), SamplingParams(temperature=1.1))) < 1e-6


@pytest.mark.parametrize("sampling", FILTERS, ids=name_of)
def test_logprobs_are_of_the_full_softmax_at_temperature(sampling):
    """Renormalising over what a filter left would disagree with the learner's teacher forcing."""
    tokens, logprobs = drawn(logits_of(23), sampling)
    full = np.log(expected(logits_of(23), SamplingParams(sampling.temperature)))
    np.testing.assert_allclose(logprobs, full[tokens], atol=2e-6)


@pytest.mark.parametrize(
    "sampling", [*FILTERS, SamplingParams(0), SamplingParams(banned=(3,), min_tokens=2)], ids=str
)
def test_the_layout_of_logits_changes_no_token(sampling):
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (4, 5, 1300)), jnp.float32)
    keys = row_keys(jax.random.key(0), jnp.arange(4, dtype=jnp.uint32), 5)
    either = jax.jit(sample_tokens, static_argnums=(3, 4), static_argnames="vocabulary_first")
    given = keys, jnp.arange(5), logits, sampling, (7, 11)
    (tokens, logprobs), (others, theirs) = either(*given), either(*given, vocabulary_first=True)
    np.testing.assert_array_equal(tokens, others)
    np.testing.assert_allclose(logprobs, theirs, atol=2e-6)


def test_greedy_takes_the_most_likely_and_scores_at_temperature_one():
    tokens, logprobs = drawn(logits_of(23), SamplingParams(temperature=0), 50)
    full = np.log(expected(logits_of(23), SamplingParams()))
    assert set(tokens) == {full.argmax()}
    np.testing.assert_allclose(logprobs, full.max(), atol=2e-6)


@pytest.mark.parametrize("width", [1, 512, 513, 1024])
def test_every_token_of_every_block_can_be_sampled(width):
    """One certain token at a time: an offset at a block's edge shows at once."""
    places = np.unique(np.clip([0, 1, 510, 511, 512, 513, 1023, width - 1], 0, width - 1))
    for place in places:
        certain = np.where(np.arange(width) == place, 0, -np.inf).astype(np.float32)
        tokens, logprobs = drawn(certain, SamplingParams(), 50)
        assert set(tokens) == {place}
        assert not logprobs.any()


def test_padded_rows_of_the_vocabulary_are_never_sampled():
    logits = np.full(700, -3.0, np.float32)
    logits[650:] = -np.inf
    logits[::2] = -np.inf
    tokens, logprobs = drawn(logits, SamplingParams())
    assert np.isfinite(logits[tokens]).all()
    assert np.isfinite(logprobs).all()


def test_rounding_in_the_cumulative_sum_never_selects_weight_zero():
    """A parallel cumulative sum steps up, here and there, where the weight is zero; uniforms that land exactly
    on such a step used to select it."""
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((400, 512)) < 0.3, rng.random((400, 512)), 0).astype(np.float32)
    sums = np.asarray(jnp.cumsum(weights, axis=-1))
    row, place = np.nonzero((weights[:, 1:] == 0) & (np.diff(sums) > 0))
    assert len(row) > 100
    uniform = np.round(sums[row, place].astype(np.float64) / sums[row, -1] * 2**23) / 2**23
    chosen = np.asarray(_search(weights[row], jnp.asarray(uniform, jnp.float32)))
    assert (weights[row, chosen] > 0).all()


@pytest.mark.parametrize("uniform", [0.0, 2**-24, 0.5, 1 - 2**-23, 1 - 2**-24, 1.0])
def test_extreme_uniforms_select_a_token_of_positive_weight(uniform):
    weights = jnp.asarray([[0, 0, 3, 0, 1e-3, 0], [0, 1e-30, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]], jnp.float32)
    chosen = np.asarray(_search(weights, jnp.full(3, uniform, jnp.float32)))
    assert (np.asarray(weights)[np.arange(3), chosen] > 0).all()


def test_a_uniform_of_zero_does_not_pick_an_improbable_first_token(monkeypatch):
    logits = jnp.asarray([[[-60.0, 0.0, 0.0]]])
    keys = row_keys(jax.random.key(0), jnp.zeros(1, jnp.uint32), 1)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    assert int(sample_tokens(keys, jnp.int32(0), logits, SamplingParams())[0][0, 0]) == 1


# The largest float32 grid on which sums of 24 weights are exact: the oracle and the bisection must then agree
# to the bit, at every edge.
exact_weights = hnp.arrays(np.int32, 24, elements=st.integers(0, 1024)).map(
    lambda x: np.append(x, 1024).astype(np.float32) / 1024
)


@functools.cache
def compiled_threshold():
    return jax.jit(_nucleus_threshold)


@given(weights=exact_weights, sixteenths=st.integers(1, 15))
@settings(max_examples=300, deadline=None)
def test_nucleus_threshold_equals_a_sort(weights, sixteenths):
    top_p = sixteenths / 16
    ordered = np.sort(weights.astype(np.float64))[::-1]
    mass = np.array([ordered[ordered >= t].sum() for t in ordered])  # equal weights come together
    wanted = ordered[np.argmax(mass >= top_p * ordered.sum())]
    assert float(compiled_threshold()(weights, jnp.float32(top_p))[0]) == wanted


def test_nucleus_of_many_tiny_weights_is_exact():
    """Weights over thirty orders of magnitude: bisection over values would need more passes than over bits."""
    weights = np.float32(0.5) ** np.arange(100, dtype=np.float32)
    for kept in (1, 5, 20):
        top_p = jnp.float32(1 - 0.5**kept)
        assert float(compiled_threshold()(weights, top_p)[0]) == weights[kept - 1]


distinct_logits = hnp.arrays(np.float32, 24, elements=st.integers(-400, 400), unique=True).map(
    lambda x: x / 50
)


@functools.cache
def compiled_filter(sampling):
    return jax.jit(lambda logits: _filtered_weights(logits / sampling.temperature, sampling))


def transformers_support(logits, sampling):
    """What transformers' own processors leave, in float64; and the same with the nucleus a hair larger."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    def support(top_p):
        scores = torch.tensor(logits, dtype=torch.float64)[None] / sampling.temperature
        if sampling.top_k:
            scores = theirs.TopKLogitsWarper(sampling.top_k)(None, scores)
        if sampling.top_p < 1:
            scores = theirs.TopPLogitsWarper(top_p)(None, scores)
        if sampling.min_p:
            scores = theirs.MinPLogitsWarper(sampling.min_p)(None, scores)
        return torch.isfinite(scores[0]).numpy()

    return support(sampling.top_p), support(sampling.top_p + 1e-6), support(sampling.top_p - 1e-6)


@pytest.mark.parametrize("sampling", FILTERS[3:], ids=name_of)
@given(logits=distinct_logits)
@settings(max_examples=60, deadline=None)
def test_filters_keep_what_transformers_keeps(sampling, logits):
    wanted, more, less = transformers_support(logits, sampling)
    kept = np.asarray(compiled_filter(sampling)(logits)) > 0
    if (more == less).all():  # else an edge falls within rounding
        np.testing.assert_array_equal(kept, wanted)


def test_equal_logits_at_a_threshold_are_all_kept():
    logits = jnp.asarray([2.0, 1.0, 1.0, 1.0, 0.0])
    assert (np.asarray(_filtered_weights(logits, SamplingParams(top_k=2))) > 0).tolist() == [True] * 4 + [
        False
    ]
    assert (np.asarray(_filtered_weights(logits, SamplingParams(top_p=0.6))) > 0).tolist() == [True] * 4 + [
        False
    ]


def test_top_k_beyond_the_vocabulary_is_off():
    logits = logits_of(23)
    np.testing.assert_array_equal(
        _filtered_weights(logits, SamplingParams(top_k=100)), _filtered_weights(logits, SamplingParams())
    )


def test_keys_differ_by_step_prompt_and_sample_and_by_nothing_else():
    bits = lambda keys: np.asarray(jax.random.key_data(keys))
    uids = jnp.asarray([7, 2**32 - 1, 3], jnp.uint32)
    keys = bits(row_keys(jax.random.key(0), uids, 4))
    assert len(np.unique(keys.reshape(12, -1), axis=0)) == 12
    np.testing.assert_array_equal(bits(row_keys(jax.random.key(0), uids[::-1], 4)), keys[::-1])
    np.testing.assert_array_equal(bits(row_keys(jax.random.key(0), uids[:2], 2)), keys[:2, :2])
    assert (bits(row_keys(jax.random.key(1), uids, 4)) != keys).any(-1).all()


def test_positions_are_sampled_independently():
    keys = row_keys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32), 500)
    logits = jnp.zeros((2, 500, 64))
    first, second = (
        np.asarray(sample_tokens(keys, jnp.int32(t), logits, SamplingParams())[0]).ravel() for t in (0, 1)
    )
    assert (first == second).mean() < 0.05  # 1/64 by chance


@pytest.mark.parametrize("sampling", FILTERS, ids=name_of)
def test_the_vocabulary_is_never_sorted(sampling, jaxpr_equations):
    """A sort of 151,936 logits a row a token is what makes top-p slow elsewhere."""
    keys, logits = row_keys(jax.random.key(0), jnp.zeros(1, jnp.uint32), 2), jnp.zeros((1, 2, 1500))
    equations = jaxpr_equations(lambda: sample_tokens(keys, jnp.int32(0), logits, sampling))
    names = {equation.primitive.name for equation in equations}
    assert "cumsum" in names  # the walk reaches the inside
    assert {n for n in names if "sort" in n or "top_k" in n} == ({"top_k"} if sampling.top_k else set())


BANNED = [
    SamplingParams(banned=(3, 20)),
    SamplingParams(0.8, top_k=5, banned=(3, 20)),
    SamplingParams(0.0, banned=(3, 20)),
]


@pytest.mark.parametrize("sampling", BANNED, ids=name_of)
def test_banned_tokens_are_never_sampled_and_change_no_logprob(sampling):
    """The likeliest tokens are banned; the rest stays in proportion, scored under the full softmax."""
    logits = logits_of(23).copy()
    logits[[3, 20]] = logits.max() + 2
    tokens, logprobs = drawn(logits, sampling, 5000)
    assert not {3, 20} & set(tokens)
    full = np.log(expected(logits, SamplingParams(sampling.temperature or 1.0)))
    np.testing.assert_allclose(logprobs, full[tokens], atol=2e-6)
    if sampling.temperature:
        rest = np.where(np.isin(np.arange(23), [3, 20]), -np.inf, logits)
        assert p_value(tokens, expected(rest, sampling)) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_row_ends_before_its_minimum_length(temperature):
    """Rows are at different positions, and each has its own minimum to reach."""
    keys = row_keys(jax.random.key(0), jnp.zeros(1, jnp.uint32), 400)
    positions = jnp.arange(400)[None] % 8
    logits = jnp.zeros((1, 400, 9)).at[..., 4].set(20.0)
    sampling = SamplingParams(temperature, min_tokens=5)
    token, logprob = (np.asarray(x)[0] for x in sample_tokens(keys, positions, logits, sampling, (4, 7)))
    early = np.asarray(positions)[0] < 5
    assert not np.isin(token[early], [4, 7]).any()
    assert (token[~early] == 4).all()
    assert logprob[early].max() < -19, "of the full softmax, in which the end is nearly certain"


def test_options_that_are_off_add_no_operations(jaxpr_equations):
    keys, logits = row_keys(jax.random.key(0), jnp.zeros(1, jnp.uint32), 2), jnp.zeros((1, 2, 700))
    with_ids = jaxpr_equations(lambda: sample_tokens(keys, jnp.int32(0), logits, SamplingParams(), (3, 4)))
    without = jaxpr_equations(lambda: sample_tokens(keys, jnp.int32(0), logits, SamplingParams()))
    assert len(with_ids) == len(without)


def test_each_prompt_may_have_a_key_of_its_own():
    bits = lambda keys: np.asarray(jax.random.key_data(keys))
    uids, seeds = jnp.asarray([7, 3], jnp.uint32), jax.vmap(jax.random.key)(jnp.arange(2))
    keys = bits(row_keys(seeds, uids, 4))
    for p in range(2):
        np.testing.assert_array_equal(keys[p], bits(row_keys(jax.random.key(p), uids[p : p + 1], 4))[0])
