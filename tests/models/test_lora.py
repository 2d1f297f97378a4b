"""Adapters beside frozen weights compute what the merged weights compute, and only they get a gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.lora import TARGETS, Adapted, Base, Dropout, LoRA, init_adapters, joined, merged
from grpo_jax.models.quantized import quantize
from grpo_jax.models.transformer import head_logits, hidden_states, sampler_weights

new_adapters = jax.jit(init_adapters, static_argnums=(0, 1))
quantized = jax.jit(quantize, static_argnums=(1, 2))
merged_once = jax.jit(merged)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 9)))


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return head_logits(cfg, params, hidden_states(cfg, params, TOKENS, positions)[0])


def adapters(cfg, lora, seed=0):
    """Adapters whose B is not zero."""
    fresh, rng = new_adapters(cfg, lora, jax.random.key(seed)), np.random.default_rng(seed)
    is_b = lambda path: path[-1].key == "lora_b"
    fill = lambda path, x: jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype) if is_b(path) else x
    return jax.tree_util.tree_map_with_path(fill, fresh)


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("o", "down")], ids="-".join)
def test_adapters_compute_the_same_as_the_merged_weights(tiny, random_params, targets):
    lora = LoRA(rank=3, alpha=6, targets=targets)
    trained = adapters(tiny, lora)
    assert set(trained["layers"]) == set(targets)
    beside = joined(trained, Base(random_params(tiny), lora.scale))
    np.testing.assert_allclose(logits(tiny, beside), logits(tiny, merged_once(beside)), atol=2e-5)
    moved = np.abs(logits(tiny, beside) - logits(tiny, random_params(tiny))).max()
    assert moved > 0.05


def test_a_merged_matrix_is_the_sum_in_float64(tiny, random_params):
    lora = LoRA(rank=3, alpha=6)
    trained, base = adapters(tiny, lora), random_params(tiny)
    whole = merged_once(joined(trained, Base(base, lora.scale)))
    wide = lambda x: np.asarray(x, np.float64)
    for name, spec in [("q", "dr,rnh->dnh"), ("o", "nhr,rd->nhd"), ("down", "fr,rd->fd")]:
        a, b = (wide(trained["layers"][name]["kernel"][half]) for half in ("lora_a", "lora_b"))
        for layer in range(tiny.num_layers):
            expected = wide(base["layers"][name]["kernel"][layer]) + 2 * np.einsum(spec, a[layer], b[layer])
            np.testing.assert_allclose(whole["layers"][name]["kernel"][layer], expected, atol=1e-6)


@pytest.mark.parametrize("form", ["auto", "int8", "nf4"])
def test_new_adapters_leave_the_logits_unchanged(tiny, random_params, form):
    """B = 0 adds zeros: to the bit, but that compilers may add zero before they round a scaled sum."""
    lora = LoRA(rank=2, alpha=4)
    base = random_params(tiny) if form == "auto" else quantized(random_params(tiny), "float32", form)
    beside = joined(new_adapters(tiny, lora, jax.random.key(0)), Base(base, lora.scale))
    np.testing.assert_allclose(logits(tiny, beside), logits(tiny, base), atol=0 if form == "auto" else 1e-5)


@pytest.mark.parametrize("form", ["auto", "int8", "nf4"])
def test_gradients_of_adapters_equal_those_through_merged_weights(tiny, random_params, form):
    lora = LoRA(rank=2, alpha=4)
    base = random_params(tiny)
    frozen = base if form == "auto" else quantized(base, "float32", form)
    plain = base if form == "auto" else _wide(frozen)
    trained = adapters(tiny, lora)
    value = lambda tree, form_of: (logits(tiny, form_of(tree)) ** 2).mean()
    beside = lambda tree: joined(tree, Base(frozen, lora.scale))
    summed = lambda tree: merged(joined(tree, Base(plain, lora.scale)))
    found, expected = (jax.jit(jax.grad(value), static_argnums=1)(trained, of) for of in (beside, summed))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * float(jnp.abs(b).max()))
    jax.tree.map(same, found, expected)


@jax.jit
def _wide(tree):
    from grpo_jax.models.families import summed_axes
    from grpo_jax.models.matrices import Matrix

    def of(path, x):
        return x.plain(summed_axes()[tuple(k.key for k in path)]) if isinstance(x, Matrix) else x

    return jax.tree_util.tree_map_with_path(of, tree, is_leaf=lambda x: isinstance(x, Matrix))


def test_the_sampler_gets_merged_weights_unless_the_base_is_quantised(tiny, random_params):
    lora, base = LoRA(rank=2, alpha=4), random_params(tiny)
    trained = adapters(tiny, lora)
    plain = sampler_weights(joined(trained, Base(base, 2.0)), jnp.dtype("float32"))
    assert jax.tree.structure(plain) == jax.tree.structure(base)
    small = quantized(base, "float32", "nf4")
    kept = sampler_weights(joined(trained, Base(small, 2.0)), jnp.dtype("float32"))
    assert kept["layers"]["q"]["kernel"].base.codes is small["layers"]["q"]["kernel"].codes


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 16 / math.sqrt(8))])
def test_the_scale_is_alpha_over_rank_or_over_its_root_with_rslora(rslora, scale):
    assert LoRA(8, 16, use_rslora=rslora).scale == scale


def test_dropout_leaves_out_inputs_of_the_adapter_and_nothing_else():
    """As PEFT: the base sees all of x; the adapter sees x / (1 - rate) where it is kept."""
    rng = np.random.default_rng(0)
    x, base = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 40), (40, 6)))
    key = jax.random.key_data(jax.random.key(1))
    eye = jnp.eye(40)
    seen = Adapted(0 * eye, eye, eye, 1.0, key, 0.25).times(x, (0,), jnp.float32)
    kept = np.asarray(seen != 0)
    assert 0.6 < kept.mean() < 0.9
    np.testing.assert_allclose(seen, np.where(kept, x / 0.75, 0), rtol=1e-6)
    found = Adapted(base, eye, base, 2.0, key, 0.25).times(x, (0,), jnp.float32)
    np.testing.assert_allclose(found, x @ base + 2 * (seen @ base), rtol=1e-4, atol=1e-5)


def test_every_layer_matrix_and_number_drops_its_own_inputs(tiny, random_params):
    lora = LoRA(rank=3, alpha=6)
    beside = lambda n: joined(
        new_adapters(tiny, lora, jax.random.key(0)),
        Base(random_params(tiny), lora.scale),
        Dropout(0.1, jax.random.key(0)).of(n),
    )
    keys = [np.asarray(beside(n)["layers"][name]["kernel"].key) for n in (0, 1) for name in TARGETS]
    assert len({tuple(row) for rows in keys for row in rows}) == 2 * len(TARGETS) * tiny.num_layers
