"""Teacher forcing: equal to the plain formula, in chunks or not, and never a [B,T,V] array."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learner.logprobs import LogprobSettings, completion_logprobs, make_rows, restarted
from grpo_jax.models.transformer import head_logits, hidden_states

B, TP, TC, REAL = 3, 5, 11, 37
PROMPTS, COMPLETIONS = np.array([5, 1, 4]), np.array([11, 3, 0])
WHOLE = LogprobSettings(temperature=0.7, num_tokens=REAL, chunk=10**6, entropy=True)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens = lambda width: rng.integers(0, REAL, (B, width)).astype(np.int32)
    mask = (np.arange(TC) < COMPLETIONS[:, None]).astype(np.float32)
    completions = np.where(mask > 0, tokens(TC), REAL + 1)  # padding with an id that no logit reaches
    return jax.jit(make_rows)(tokens(TP), PROMPTS, completions.astype(np.int32), mask)


def test_rows_close_the_gap_between_prompt_and_completion():
    prompts = jnp.asarray([[1, 2, 3], [4, 99, 99]])
    completions = jnp.asarray([[5, 6, 0, 0], [7, 8, 9, 10]])
    tokens = np.asarray(jax.jit(make_rows)(prompts, np.array([3, 1]), completions, np.ones((2, 4))).tokens)
    assert tokens[0, :5].tolist() == [1, 2, 3, 5, 6]
    assert tokens[1, :5].tolist() == [4, 7, 8, 9, 10]
    assert tokens.shape == (2, 7)


def test_positions_restart_with_each_packed_row():
    """Rotary positions are relative, so no other test would notice if they did not."""
    segments = jnp.asarray([[1, 1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1]])
    positions = np.broadcast_to(np.arange(7), (2, 7))
    assert jax.jit(restarted)(positions, segments).tolist() == [[0, 1, 2, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6]]


@pytest.fixture(scope="module")
def plain_logits(tiny, tiny_params, rows):
    """All logits of the real ids of each row by itself, unpadded."""

    def of_row(params, tokens, width):
        hidden = hidden_states(tiny, params, tokens[None, :width], jnp.arange(width)[None])[0]
        return head_logits(tiny, params, hidden)[0, :, :REAL]

    of_all = jax.jit(lambda params, tokens: list(map(partial(of_row, params), tokens, PROMPTS + COMPLETIONS)))
    return [np.asarray(x, np.float64) for x in of_all(tiny_params, rows.tokens)]


def plain_formula(plain_logits, rows, temperature):
    """Log-probs and entropies [B,TC] in float64."""
    ids = np.asarray(rows.completions)
    logprobs, entropies = np.zeros((2, B, TC))
    for b, (start, length) in enumerate(zip(PROMPTS, COMPLETIONS)):
        logits = plain_logits[b][start - 1 : start + length - 1] / temperature
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        logprobs[b, :length] = scores[np.arange(length), ids[b, :length]]
        entropies[b, :length] = -(np.exp(scores) * scores).sum(-1)
    return logprobs, entropies


def test_logprobs_and_entropies_equal_the_plain_formula(rows, plain_logits, unchunked):
    """Probabilities are over the tokenizer's ids: padded rows of the vocabulary take no part."""
    (logprobs, entropies), wanted = unchunked[0], plain_formula(plain_logits, rows, WHOLE.temperature)
    np.testing.assert_allclose(logprobs, wanted[0], atol=1e-5)
    np.testing.assert_allclose(entropies, wanted[1], atol=1e-5)
    assert not np.any(logprobs[np.asarray(rows.mask) == 0])


def scored(tiny, params, rows, logprob_settings, weights=None):
    """The log-probs and entropies, and the gradient of a weighted sum of the log-probs; all compiled."""
    weights = np.random.default_rng(1).normal(size=(B, TC)) if weights is None else weights
    (_, out), grads = compiled(tiny, logprob_settings)(params, rows, np.asarray(weights, np.float32))
    return jax.tree.map(np.asarray, (out, grads))


@functools.cache
def compiled(cfg, logprob_settings):
    def total(params, rows, weights):
        logprobs, entropy = completion_logprobs(cfg, params, rows, logprob_settings)
        return (logprobs * weights).sum(), (logprobs, entropy)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.fixture(scope="module")
def unchunked(tiny, tiny_params, rows):
    return scored(tiny, tiny_params, rows, WHOLE)


def test_chunks_change_neither_values_nor_gradients(tiny, tiny_params, rows, unchunked):
    """Of a number of tokens that B does not divide, and of a width that does not divide TC."""
    logprob_settings = dataclasses.replace(WHOLE, chunk=5 * B + 1)
    (logprobs, entropy), grads = scored(tiny, tiny_params, rows, logprob_settings)
    np.testing.assert_allclose(logprobs, unchunked[0][0], atol=1e-6)
    np.testing.assert_allclose(entropy, unchunked[0][1], atol=1e-6)
    assert_close(grads, unchunked[1])


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_padding_outside_the_vocabulary_gives_no_nan(unchunked):
    """Its log-prob is minus infinity before the mask; one 0 * inf would poison every weight."""
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(unchunked))
    assert all(np.any(x) for x in jax.tree.leaves(unchunked[1]))


def test_masked_places_send_no_gradient(tiny, tiny_params, rows, unchunked):
    """Weights under the mask change nothing."""
    loud = np.random.default_rng(1).normal(size=(B, TC)) + 1e6 * (1 - np.asarray(rows.mask))
    _, grads = scored(tiny, tiny_params, rows, WHOLE, loud)
    assert_close(grads, unchunked[1])


def test_the_last_token_of_a_completion_gets_gradient(tiny, tiny_params, rows):
    """The end-of-sequence token: its own column of the head must move."""
    last = np.zeros((B, TC))
    last[1, COMPLETIONS[1] - 1] = 1.0
    _, grads = scored(tiny, tiny_params, rows, WHOLE, last)
    end = int(rows.completions[1, COMPLETIONS[1] - 1])
    assert np.abs(grads["head"]["kernel"][:, end]).max() > 1e-3


@pytest.mark.parametrize("entropy", [False, True])
def test_no_array_holds_the_logits_of_all_tokens(tiny, tiny_params, rows, jaxpr_equations, entropy):
    """Out of memory from [B,T,V] is the commonest complaint about GRPO trainers. Forward and backward."""

    def largest(chunk):
        logprob_settings = dataclasses.replace(WHOLE, chunk=chunk, entropy=entropy)
        total = lambda params: completion_logprobs(tiny, params, rows, logprob_settings)[0].sum()
        equations = jaxpr_equations(jax.grad(total), tiny_params)
        shapes = [v.aval.shape for equation in equations for v in equation.outvars]
        weights = {x.shape for x in jax.tree.leaves(tiny_params)}
        return max(
            int(np.prod(s[:-1])) for s in shapes if s and s[-1] == tiny.vocab_size and s not in weights
        )

    assert largest(10**6) == B * TC
    assert largest(2 * B) == 2 * B


HALF = dataclasses.replace(WHOLE, dtype="bfloat16", entropy=False)


def test_half_precision_computation_gives_float32_logprobs(tiny, tiny_params, rows, unchunked):
    logprobs, _ = scored(tiny, tiny_params, rows, HALF, np.ones((B, TC)))[0]
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, unchunked[0][0], atol=0.25)


def test_the_heads_gradient_is_summed_over_chunks_in_float32(tiny, tiny_params, rows):
    """Added up in bfloat16, the parts of many chunks, here of one token each, would lose percents of it."""

    def of_chunks(chunk):
        logprob_settings = dataclasses.replace(HALF, chunk=chunk)
        (logprobs, _), grads = scored(tiny, tiny_params, rows, logprob_settings, np.ones((B, TC)))
        return logprobs, grads["head"]["kernel"]

    (one_by_one, many), (together, one) = of_chunks(1), of_chunks(WHOLE.chunk)
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)
    assert (many != many.astype(jnp.bfloat16)).mean() > 0.5, "the sum itself was rounded to bfloat16"
    assert np.linalg.norm(one - many) / np.linalg.norm(one) < 2**-8  # one chunk's own rounding
