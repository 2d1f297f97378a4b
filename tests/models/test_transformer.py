"""The forward pass against transformers' Qwen2ForCausalLM, weights going through a folder on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.hf import load_config, load_params
from grpo_jax.models.matrices import product
from grpo_jax.models.transformer import abstract_params, cast, gated, head_logits, hidden_states, init

SHAPES = {
    "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 8},
    "one key head, tied": {"heads": 6, "kv_heads": 1, "head_dim": 16, "tied": True, "hidden": 24},
    "as many key heads": {"heads": 3, "kv_heads": 3, "head_dim": 4, "theta": 1e6, "hidden": 20, "ffn": 28},
    "heads wider than hidden": {"heads": 8, "kv_heads": 4, "head_dim": 16, "layers": 3, "vocab": 97},
    "large epsilon, tied": {"heads": 4, "kv_heads": 1, "head_dim": 8, "eps": 1e-1, "tied": True},
    "yarn": {"heads": 4, "kv_heads": 2, "head_dim": 32, "theta": 1e6, "yarn": {}},
    "yarn with its own amplitude": {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "yarn": {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0},
    },
}
LENGTHS = np.array([37, 5, 1, 20])  # YaRN's original context below is 16: its stretch is in use


def torch_model(
    *,
    heads,
    kv_heads,
    head_dim,
    hidden=32,
    ffn=64,
    layers=2,
    vocab=64,
    theta=1e4,
    eps=1e-6,
    tied=False,
    yarn=None,
):
    torch = pytest.importorskip("torch")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = {"rope_type": "default", "rope_theta": theta}
    if yarn is not None:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16} | yarn
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=64,
        rms_norm_eps=eps,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        use_sliding_window=False,
    )
    torch.manual_seed(heads * 100 + layers)
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)  # biases and norms too
    return model


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def pair(request, tmp_path):
    """A torch model, and our config and parameters read from its saved folder."""
    model = torch_model(**request.param)
    model.save_pretrained(tmp_path)
    cfg = load_config(tmp_path)
    return model, cfg, load_params(tmp_path, cfg)


def test_logits_equal_transformers_on_padded_rows(pair):
    import torch

    model, cfg, params = pair
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab_size, (len(LENGTHS), LENGTHS.max()))
    real = np.arange(tokens.shape[1]) < LENGTHS[:, None]
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), attention_mask=torch.tensor(real).long()).logits.numpy()
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    ours = np.asarray(jax.jit(forward, static_argnums=0)(cfg, params, jnp.asarray(tokens), positions))
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs)[real].max() <= 1e-4 * np.abs(theirs[real]).max()


def forward(cfg, params, tokens, positions):
    return head_logits(cfg, params, hidden_states(cfg, params, tokens, positions)[0])


def test_padding_and_the_future_are_invisible_to_the_bit(tiny, tiny_params):
    tokens = np.random.default_rng(1).integers(0, tiny.vocab_size, (2, 12))
    other = tokens.copy()
    other[:, 7:] = (other[:, 7:] + 1) % tiny.vocab_size
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    run = jax.jit(forward, static_argnums=0)
    before, after = run(tiny, tiny_params, tokens, positions), run(tiny, tiny_params, other, positions)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 0.01


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_remat_changes_no_gradient(tiny, tiny_params, remat):
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, tiny.vocab_size, (2, 6)))
    positions = jnp.broadcast_to(jnp.arange(6), tokens.shape)

    def total(params, remat):
        return (hidden_states(tiny, params, tokens, positions, remat=remat)[0] ** 2).sum()

    grad = jax.jit(jax.grad(total), static_argnums=1)
    kept, recomputed = grad(tiny_params, "none"), grad(tiny_params, remat)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_remat_recomputes_only_the_products_its_mode_names(tiny, tiny_params, jaxpr_equations):
    """Of a layer's seven products: `dots` none, but attention's inner two where it keeps no scores; `full` all but the
    last, whose outcome no gradient needs."""
    tokens, positions = jnp.zeros((2, 6), jnp.int32), jnp.broadcast_to(jnp.arange(6), (2, 6))

    def equations(remat):
        total = lambda params: hidden_states(tiny, params, tokens, positions, remat=remat)[0].sum()
        return jaxpr_equations(jax.grad(total), tiny_params)

    count = lambda remat: sum(e.primitive.name == "dot_general" for e in equations(remat))
    kept = count("none")
    assert (count("dots") - kept, count("full") - kept, count("offload") - kept) == (1, 8, 8)
    moved = [e for e in equations("offload") if e.primitive.name == "device_put"]
    assert {x.aval.shape for e in moved for x in e.invars} == {(2, 6, tiny.hidden_size)}


def test_padded_vocabulary_rows_are_minus_infinity_and_no_others(tiny, tiny_params):
    hidden = jnp.ones((3, tiny.hidden_size))
    whole, cut = head_logits(tiny, tiny_params, hidden), head_logits(tiny, tiny_params, hidden, 37)
    assert np.isneginf(cut[:, 37:]).all()
    np.testing.assert_array_equal(whole[:, :37], cut[:, :37])
    np.testing.assert_array_equal(whole, head_logits(tiny, tiny_params, hidden, tiny.vocab_size))


def test_logits_of_half_precision_weights_are_summed_in_float32(tiny, tiny_params):
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, tiny.vocab_size, (2, 6)))
    positions = jnp.broadcast_to(jnp.arange(6), tokens.shape)
    wide, half = (forward(tiny, cast(tiny_params, d), tokens, positions) for d in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert np.abs(wide - half).max() < 0.1 * np.abs(wide).max()
    assert (np.asarray(half) != np.asarray(half.astype(jnp.bfloat16), np.float32)).any()


def test_random_start_has_the_declared_shapes_and_no_bias(tiny):
    params = init(tiny, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(tiny)
    )
    assert 0.018 < float(params["layers"]["gate"]["kernel"].std()) < 0.022
    assert not np.any(params["layers"]["q"]["bias"])
    layers = params["layers"]["up"]["kernel"]
    assert np.abs(layers[0] - layers[1]).max() > 0.01  # layers must not start as copies of each other


@pytest.mark.parametrize(("inputs", "outputs"), [((6,), (2, 4)), ((2, 4), (6,)), ((8,), (3,)), ((3,), (8,))])
def test_the_gradient_of_a_product_equals_tensordots(inputs, outputs):
    """Written by hand, with the factors in an order of our own."""
    x, w, d = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 5, *inputs), (*inputs, *outputs), (2, 5, *outputs)])
    )
    axes = tuple(range(len(inputs)))
    last = tuple(range(-len(inputs), 0))
    ours = jax.vjp(lambda x, w: product(x, w, axes), x, w)[1](d)
    plain = jax.vjp(lambda x, w: jnp.tensordot(x, w, (last, axes)), x, w)[1](d)
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_gradient_of_the_gate_equals_silu_times_up():
    gate, up, d = (3 * jax.random.normal(jax.random.key(i), (64,)) for i in range(3))
    ours = jax.vjp(gated, gate, up)[1](d)
    for a, b in zip(ours, jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)[1](d)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
