"""Whole rollouts: equal to transformers when greedy, scored as the learner scores, the same however split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learner.logprobs import LogprobSettings, make_rows
from grpo_jax.learner.update import make_score
from grpo_jax.models.hf import load_config, load_params
from grpo_jax.rollout import decoding as module
from grpo_jax.rollout.programs import Vocabulary, make_generate
from grpo_jax.rollout.sampling import SamplingParams

P, G, TP, TC = 4, 3, 7, 10
LENGTHS = np.array([7, 1, 4, 6], np.int32)
UIDS = np.array([11, 5, 2**32 - 1, 0], np.uint32)
PAD, REAL = 1, 37  # of 40 rows of the vocabulary
EOS = (3, 5)
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.4, top_k=5),
    SamplingParams(temperature=0.7, top_k=9, top_p=0.9, min_p=0.1),
    SamplingParams(temperature=0.0),
]


@pytest.fixture(scope="module")
def prompts():
    return np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)


@pytest.fixture(scope="module")
def programs(tiny, mesh_1):
    """`programs(sampling)`: one compiled rollout for each way of sampling, shared by the tests."""
    made = {}

    def program(sampling=SAMPLINGS[0]):
        if sampling not in made:
            made[sampling] = make_generate(tiny, Vocabulary(EOS, PAD, REAL), sampling, G, TC, mesh_1)
        return made[sampling]

    return program


@pytest.fixture(autouse=True)
def _mesh_set(one_device):
    """Every program here runs on the mesh of one device."""


def run(program, params, prompts, rows=slice(None), key=0, uids=UIDS):
    rollout = program(params, prompts[rows], LENGTHS[rows], uids[rows], jax.random.key(key))
    return jax.tree.map(np.asarray, rollout)


@pytest.fixture(scope="module")
def sampled(programs, tiny_params, prompts, mesh_1):
    with jax.set_mesh(mesh_1):
        return run(programs(), tiny_params, prompts)


# ---- against transformers


@pytest.fixture(scope="module")
def torch_pair(tiny, tmp_path_factory):
    """A torch model with random biases and norms, and our parameters from its folder."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=tiny.vocab_size,
            hidden_size=tiny.hidden_size,
            intermediate_size=tiny.intermediate_size,
            num_hidden_layers=tiny.num_layers,
            num_attention_heads=tiny.num_heads,
            num_key_value_heads=tiny.num_kv_heads,
            head_dim=tiny.head_dim,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    folder = tmp_path_factory.mktemp("torch")
    model.save_pretrained(folder)
    cfg = load_config(folder)
    return model, cfg, load_params(folder, cfg)


def continued(model, prompt, eos):
    """transformers' greedy completion of one unpadded prompt, its end-of-sequence token included."""
    import torch

    out = model.generate(
        torch.tensor(prompt[None]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=TC,
        eos_token_id=list(eos),
        pad_token_id=PAD,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_transformers_token_for_token(torch_pair, prompts, mesh_1):
    model, cfg, params = torch_pair
    free = [continued(model, prompt[:n], [cfg.vocab_size - 1]) for prompt, n in zip(prompts, LENGTHS)]
    eos = (free[0][4], free[2][6])  # two ids that end rows in their middle
    theirs = [continued(model, prompt[:n], eos) for prompt, n in zip(prompts, LENGTHS)]
    assert {len(row) for row in theirs} > {TC}, "some rows must end early and some must not"

    vocabulary = Vocabulary(eos, PAD, cfg.vocab_size)
    ours = run(
        make_generate(cfg, vocabulary, SamplingParams(temperature=0.0), 1, TC, mesh_1), params, prompts
    )
    for row, length, expected in zip(ours.tokens[:, 0], ours.lengths[:, 0], theirs):
        assert row[:length].tolist() == expected
        assert (row[length:] == PAD).all()


# ---- against the learner's own scoring


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_sampled_logprobs_equal_teacher_forcing(sampling, programs, tiny, tiny_params, prompts, mesh_1):
    """Same weights, same temperature, same padded rows: the gap is rounding noise, whatever was filtered."""
    rollout = run(programs(sampling), tiny_params, prompts)
    mask = in_completion(rollout).reshape(P * G, TC).astype(np.float32)
    spread = lambda x: jnp.repeat(jnp.asarray(x), G, axis=0)
    rows = make_rows(spread(prompts), spread(LENGTHS), jnp.asarray(rollout.tokens.reshape(P * G, TC)), mask)
    logprob_settings = LogprobSettings(temperature=sampling.temperature or 1.0, num_tokens=REAL, chunk=64)
    scored = make_score(tiny, logprob_settings, 2, mesh_1)(tiny_params, rows)
    np.testing.assert_allclose(rollout.logprobs.reshape(P * G, TC), scored, atol=1e-5)
    assert rollout.logprobs[in_completion(rollout)].max() < 0


def in_completion(rollout):
    return np.arange(TC) < rollout.lengths[..., None]


# ---- ends, padding, and tokens that are never sampled


def test_every_end_of_sequence_id_ends_a_row_and_is_stored_and_counted(sampled):
    ends = np.isin(sampled.tokens, EOS) & in_completion(sampled)
    np.testing.assert_array_equal(ends.any(-1), sampled.finished)
    first = np.where(ends.any(-1), ends.argmax(-1) + 1, TC)
    np.testing.assert_array_equal(sampled.lengths, first)
    assert {int(t) for t in sampled.tokens[ends]} == set(EOS), "the draw must show both ids"
    assert (sampled.logprobs[ends] < 0).all()
    assert 0 < sampled.finished.sum() < P * G, "the draw must show finished and truncated rows"
    assert (sampled.lengths[~sampled.finished] == TC).all()


def test_after_the_end_there_is_padding_and_no_logprob(sampled):
    after = ~in_completion(sampled)
    assert after.any()
    assert (sampled.tokens[after] == PAD).all()
    assert (sampled.logprobs[after] == 0).all()


def test_padded_vocabulary_rows_are_never_sampled_even_if_likeliest(programs, tiny_params, prompts):
    head = tiny_params["head"]["kernel"]
    loud = tiny_params | {"head": {"kernel": head.at[:, REAL:].multiply(100.0)}}
    for sampling in (SAMPLINGS[0], SAMPLINGS[-1]):
        quiet, same = run(programs(sampling), tiny_params, prompts), run(programs(sampling), loud, prompts)
        assert same.tokens.max() < REAL
        jax.tree.map(np.testing.assert_array_equal, quiet, same)


def test_a_row_that_ends_exactly_at_the_limit_is_finished(
    programs, tiny_params, prompts, monkeypatch, mesh_1, tiny
):
    force(monkeypatch, lambda position, token: jnp.where(position == TC - 1, EOS[1], 7))
    rollout = run(
        make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), 2, TC, mesh_1), tiny_params, prompts
    )
    assert rollout.finished.all()
    assert (rollout.lengths == TC).all()


def force(monkeypatch, token, seen=None):
    """Replace what is drawn by `token(position, drawn)`, and collect the positions that were drawn."""
    real = module.sample_tokens

    def sample_tokens(keys, position, logits, *given, **named):
        if seen is not None:
            jax.debug.callback(lambda p: seen.append(int(p.max())), position)
        drawn, logprob = real(keys, position, logits, *given, **named)
        return jnp.broadcast_to(token(position, drawn), drawn.shape).astype(jnp.int32), logprob

    monkeypatch.setattr(module, "sample_tokens", sample_tokens)


def test_decoding_stops_when_every_row_has_ended_and_not_before(
    tiny, tiny_params, prompts, monkeypatch, mesh_1
):
    seen = []
    ends_at = jnp.asarray([[2, 0], [4, 1], [0, 0], [3, 2]])
    force(monkeypatch, lambda position, _: jnp.where(position == ends_at, EOS[0], 7), seen)
    rollout = run(
        make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), 2, TC, mesh_1), tiny_params, prompts
    )
    jax.effects_barrier()
    assert sorted(seen) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rollout.lengths, ends_at + 1)
    assert rollout.finished.all()


# ---- a row's tokens do not depend on the rows beside it


def test_reordering_the_prompts_reorders_the_completions(programs, tiny_params, prompts, sampled):
    order = np.array([2, 0, 3, 1])
    assert_same(run(programs(), tiny_params, prompts, order), sampled, order)


def test_splitting_the_batch_changes_nothing(programs, tiny_params, prompts, sampled):
    """Also with the loop of one half ending earlier than that of the whole."""
    for part in (slice(0, 2), slice(2, 4)):
        assert_same(run(programs(), tiny_params, prompts, part), sampled, part)


def test_wider_padding_of_the_prompts_changes_nothing(programs, tiny_params, prompts, sampled):
    wide = np.pad(prompts, [(0, 0), (0, 4)], constant_values=9)
    assert_same(run(programs(), tiny_params, wide), sampled, slice(None))


def test_more_samples_and_a_longer_limit_change_no_earlier_token(tiny, tiny_params, prompts, mesh_1, sampled):
    program = make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), G + 1, TC + 3, mesh_1)
    rollout = run(program, tiny_params, prompts)
    np.testing.assert_array_equal(rollout.tokens[:, :G, :TC], sampled.tokens)
    assert (rollout.lengths[:, :G] >= sampled.lengths).all()


def assert_same(part, whole, rows):
    whole = jax.tree.map(lambda x: x[rows], whole)
    np.testing.assert_array_equal(part.tokens, whole.tokens)
    np.testing.assert_array_equal(part.lengths, whole.lengths)
    np.testing.assert_array_equal(part.finished, whole.finished)
    # Sums of other lengths round otherwise.
    np.testing.assert_allclose(part.logprobs, whole.logprobs, atol=2e-6)


# ---- and they differ by step, sample and prompt


def test_tokens_differ_by_step_sample_and_prompt_uid(programs, tiny_params, prompts, sampled):
    """One noise for the whole run, or for a whole group, trains on copies."""
    flat = {tuple(row) for row in sampled.tokens[0]}
    assert len(flat) == G
    again = run(programs(), tiny_params, prompts)
    np.testing.assert_array_equal(again.tokens, sampled.tokens)
    for other in (
        run(programs(), tiny_params, prompts, key=1),
        run(programs(), tiny_params, prompts, uids=UIDS + 1),
    ):
        assert (other.tokens != sampled.tokens).any(-1).mean() > 0.8


def test_equal_prompts_with_different_uids_get_different_tokens(programs, tiny_params, prompts):
    same = np.repeat(prompts[:1], P, axis=0)
    rollout = programs()(tiny_params, same, np.repeat(LENGTHS[:1], P), UIDS, jax.random.key(0))
    assert len({tuple(row) for row in np.asarray(rollout.tokens).reshape(P * G, TC)}) > P * G * 0.8


# ---- how it is computed


def test_each_prompt_is_prefilled_once(tiny, tiny_params, jaxpr_equations, mesh_1):
    """No array of the program has P*G rows of prompt width; the prompt's cache is [P,K,Tp,H] a layer."""
    prompts, samples, width, limit = 3, 5, 11, 13  # products that no other dimension has
    program = make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), samples, limit, mesh_1)
    equations = jaxpr_equations(
        program.jit,
        tiny_params,
        jnp.ones((prompts, width), jnp.int32),
        jnp.full(prompts, width, jnp.int32),
        jnp.arange(prompts, dtype=jnp.uint32),
        jax.random.key(0),
    )
    shapes = {v.aval.shape for equation in equations for v in (*equation.invars, *equation.outvars)}
    K, H = tiny.num_kv_heads, tiny.head_dim
    assert (prompts, K, width, H) in shapes
    assert {(prompts, samples, K, H, limit), (prompts, samples, K, limit, H)} <= shapes
    weights = {x.shape for x in jax.tree.leaves(tiny_params)}
    states = {s for s in shapes - weights if s and s[-1] in (tiny.hidden_size, tiny.intermediate_size)}
    of_prompts = {s for s in states if width in s}
    assert of_prompts
    assert not {s for s in of_prompts if samples in s or prompts * samples in s}
    logits = {s for s in shapes - weights if s and s[-1] == tiny.vocab_size}
    assert not {s for s in logits if width in s}, "of a prompt only the last position needs logits"


def test_each_shape_is_compiled_once(tiny, tiny_params, prompts, mesh_1):
    program = make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), 1, 2, mesh_1)
    for key in range(3):
        run(program, tiny_params, (prompts + key) % REAL, key=key)
    assert program.compilations == 1
    run(program, tiny_params, prompts[:, :5], rows=np.array([1, 2]))
    assert program.compilations == 2


def test_half_precision_weights_make_a_half_precision_cache(
    tiny, tiny_params, prompts, mesh_1, jaxpr_equations
):
    program = make_generate(tiny, Vocabulary(EOS, PAD, REAL), SamplingParams(), 1, 13, mesh_1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_params)
    inputs = (half, prompts, LENGTHS, UIDS, jax.random.key(0))
    avals = {v.aval for equation in jaxpr_equations(program.jit, *inputs) for v in equation.outvars}
    K, H = tiny.num_kv_heads, tiny.head_dim
    for shape in ((P, K, TP, H), (P, 1, K, H, 13), (P, 1, K, 13, H)):
        assert {a.dtype for a in avals if a.shape == shape} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(program.jit, *inputs).logprobs.dtype == jnp.float32
