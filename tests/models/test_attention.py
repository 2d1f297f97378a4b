"""Attention in pieces (prompt once, completion token by token) against attention over whole rows."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models.attention import causal, decode, prefill
from grpo_jax.models.cache import empty_cache
from grpo_jax.models.kernels import causal_attention, check_kernel, splash

P, G, TP, TC = 3, 2, 5, 4
LENGTHS = np.array([5, 1, 3], np.int32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def whole_rows(q, k, v):
    return causal(jnp.int32(0), q, k, v, None)


def explicit(q, k, v):
    """Causal attention in float64, a query head at a time: head n reads key head n // (N/K)."""
    B, T, N, H = q.shape
    out = np.zeros((B, T, N, H))
    for n in range(N):
        key, value = (x[:, :, n // (N // k.shape[2])].astype(np.float64) for x in (k, v))
        scores = np.einsum("bth,bsh->bts", q[:, :, n], key) / np.sqrt(H)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, n] = np.einsum("bts,bsh->bth", weights / weights.sum(-1, keepdims=True), value)
    return out


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
def test_query_heads_read_their_own_key_head(heads):
    q, k, v = random(2, 7, heads[0], 8), random(2, 7, heads[1], 8, seed=1), random(2, 7, heads[1], 8, seed=2)
    out, cache = whole_rows(q, k, v)
    np.testing.assert_allclose(out, explicit(q, k, v), atol=1e-5)
    assert cache is None


@partial(jax.jit, static_argnums=(0, 5))
def decoded(tiny, q, k, v, garbage, slots=TC, start=0):
    """Outputs [P,G,TC,N,H] of decoding rows q, k, v [P,G,TP+TC,..] in which the prompt part is shared, in a ring that
    begins at `start`, and the cache."""
    cache = replace(empty_cache(tiny, P, G, TP, slots, jnp.float32), prompt_lengths=jnp.asarray(LENGTHS))
    real = (np.arange(TP) < LENGTHS[:, None])[..., None, None]
    prompt = lambda x: jnp.where(real, x[:, 0, :TP], garbage)
    cache = prefill(jnp.arange(P))(1, prompt(q), prompt(k), prompt(v), cache)[1]
    outputs = []
    for step in range(TC):
        token = [x[np.arange(P), :, LENGTHS + step].reshape(P * G, 1, *x.shape[3:]) for x in (q, k, v)]
        at, lengths = (start + step) % slots, jnp.full((P, G), step + 1)
        out, cache = decode(at, lengths)(1, *token, cache)
        outputs.append(out.reshape(P, G, *out.shape[2:]))
    return jnp.stack(outputs, 2), cache


@pytest.fixture
def rows(tiny):
    """q, k, v [P,G,T,N|K,H] whose prompt parts agree over G."""
    make = lambda heads, seed: random(P, G, TP + TC, heads, tiny.head_dim, seed=seed)
    q, k, v = make(tiny.num_heads, 0), make(tiny.num_kv_heads, 1), make(tiny.num_kv_heads, 2)
    for x in (q, k, v):
        for p, n in enumerate(LENGTHS):
            x[p, :, :n] = x[p, :1, :n]
    return q, k, v


def test_prefill_and_decode_equal_attention_over_whole_rows(tiny, rows):
    out, _ = decoded(tiny, *rows, 0.0)
    flat = [x.reshape(P * G, *x.shape[2:]) for x in rows]
    whole = np.asarray(whole_rows(*flat)[0]).reshape(P, G, TP + TC, *out.shape[3:])
    for p, n in enumerate(LENGTHS):
        np.testing.assert_allclose(out[p], whole[p, :, n : n + TC], atol=1e-6)


def test_prompt_padding_and_positions_not_yet_written_are_invisible(tiny, rows):
    clean, _ = decoded(tiny, *rows, 0.0)
    dirty, _ = decoded(tiny, *rows, 1e4)
    np.testing.assert_array_equal(clean, dirty)


def test_the_start_of_the_ring_changes_no_output(tiny, rows):
    straight, _ = decoded(tiny, *rows, 0.0)
    for slots, start in ((TC, TC - 1), (TC + 3, 5)):
        turned, _ = decoded(tiny, *rows, 0.0, slots, start)
        np.testing.assert_allclose(turned, straight, atol=1e-6)


def test_scores_too_large_for_exp_stay_finite(tiny, rows):
    q, k, v = rows
    out, _ = decoded(tiny, q * 100, k * 100, v, 0.0)
    assert np.isfinite(out).all()


def test_cache_holds_each_prompt_once_and_writes_one_layer(tiny, rows):
    _, cache = decoded(tiny, *rows, 0.0)
    K, H = tiny.num_kv_heads, tiny.head_dim
    assert len(cache.layers) == tiny.num_layers
    assert cache.layers[0].prompt_k.shape == (P, K, TP, H)
    assert cache.layers[0].own_k.shape == (P, G, K, H, TC)
    assert cache.layers[0].own_v.shape == (P, G, K, TC, H)
    assert not any(map(np.any, cache.layers[0]))
    assert all(map(np.any, cache.layers[1]))


def test_half_precision_decoding_sums_in_float32(tiny, rows):
    """A prompt of many equal keys: sums of 4,000 weights in bfloat16 would stop growing at 256."""
    wide = 4096
    K, N, H = tiny.num_kv_heads, tiny.num_heads, tiny.head_dim
    of_ones = lambda *shape: jnp.ones(shape, jnp.bfloat16)

    @jax.jit
    def last():
        cache = replace(empty_cache(tiny, 1, 1, wide, 1, jnp.bfloat16), prompt_lengths=jnp.full(1, wide))
        cache = cache.with_prompts(0, jnp.arange(1), *[of_ones(1, wide, K, H)] * 2)
        one = of_ones(1, 1, K, H)
        return decode(jnp.int32(0), jnp.ones((1, 1)))(0, of_ones(1, 1, N, H), one, one, cache)[0]

    out = last()
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, rtol=1e-2)


@pytest.mark.parametrize(
    ("heads", "H", "T"), [((4, 2), 64, 5), ((2, 2), 8, 128), ((6, 1), 16, 200), ((4, 2), 128, 384)], ids=str
)
def test_splash_attention_equals_the_plain_one(heads, H, T):
    """Values and gradients, of rows that are no whole number of blocks as well; behind a row's end is garbage."""
    real = (np.arange(T) < np.array([[T], [T // 2]]))[..., None, None]
    of = lambda n: np.where(real, random(2, T, n, H, seed=n), np.float32(1e3))
    given = tuple(map(of, (heads[0], heads[1], heads[1])))
    weights = np.where(real, random(2, T, heads[0], H, seed=7), 0)

    def total(kernel):
        def weighted(*qkv):
            out = kernel(*qkv)
            return (out * weights).sum(), out

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(*given)

    (_, ours), gradients = total(partial(splash, interpret=True))
    (_, plain), expected = total(partial(causal_attention, kernel="xla"))
    np.testing.assert_allclose(np.where(real, ours, 0), np.where(real, plain, 0), atol=1e-5)
    for mine, theirs in zip(gradients, expected):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


SEGMENTS = np.array([[1] * 3 + [2] * 4 + [0] * 2, [1] * 8 + [0]], np.int32)


@pytest.mark.parametrize("kernel", [partial(causal_attention, kernel="xla"), partial(splash, interpret=True)])
def test_packed_rows_attend_only_to_themselves(kernel):
    """Values and gradients are those of each row by itself."""
    given = tuple(random(2, 9, n, 16, seed=n) for n in (4, 2, 2))
    weights = random(2, 9, 4, 16, seed=7)
    spans = [(b, SEGMENTS[b] == number) for b in (0, 1) for number in (1, 2) if (SEGMENTS[b] == number).any()]

    def together(q, k, v):
        out = kernel(q, k, v, segments=jnp.asarray(SEGMENTS))
        return jnp.where((SEGMENTS > 0)[..., None, None], out * weights, 0).sum()

    def apart(q, k, v):
        one = lambda b, real: causal_attention(*(x[b, real][None] for x in (q, k, v)), kernel="xla")[0]
        return sum((one(b, real) * weights[b, real]).sum() for b, real in spans)

    ours, theirs = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*given) for f in (together, apart))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for mine, wanted in zip(ours[1], theirs[1]):
        np.testing.assert_allclose(mine, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("splash", "cpu", "float32"), "attention = splash: the devices are of kind cpu, not tpu"),
        (("cudnn", "tpu", "bfloat16"), "attention = cudnn: the devices are of kind tpu, not gpu"),
        (("cudnn", "gpu", "float32"), "attention = cudnn: it computes in half precision only"),
    ],
)
def test_a_kernel_that_the_device_lacks_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        check_kernel(*choice)
    check_kernel("auto", *choice[1:])


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention runs on CUDA devices only")
def test_fused_attention_equals_the_plain_one():
    q, k, v = (random(2, 64, n, 64, seed=n) for n in (8, 2, 2))
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    fused = causal(jnp.int32(0), half(q), half(k), half(v), None)[0]
    np.testing.assert_allclose(np.asarray(fused, np.float32), explicit(q, k, v), atol=3e-2)
