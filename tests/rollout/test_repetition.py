"""The repetition penalty is that of transformers, for every row of every table that a rollout moves through."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.attention import whole_rows
from grpo_jax.models.transformer import head_logits, hidden_states
from grpo_jax.rollout import row_table
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.repetition import penalised
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams, row_keys, sample_tokens
from grpo_jax.rollout.state import Decoder, TableSize, Vocabulary, empty_state
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, shardings

P, G, TP, WIDTH, REAL, PAD = 4, 3, 5, 20, 37, 1
PENALTY = 1.7
LENGTHS = np.array([5, 1, 3, 2], np.int32)
TOKENS = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)
PROMPTS = SimpleNamespace(tokens=TOKENS, lengths=LENGTHS, uids=np.arange(P, dtype=np.uint32))
ENDS = tuple(range(4, REAL, 9))  # several, so that completions end at different times
VOCABULARY = Vocabulary(ENDS, PAD, REAL)


def test_logits_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(1)
    logits, ids = rng.normal(size=(6, 40)).astype(np.float32) * 3, rng.integers(0, 40, (6, 15))
    seen = np.zeros((6, 40), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    theirs = RepetitionPenaltyLogitsProcessor(PENALTY)(torch.tensor(ids), torch.tensor(logits.copy()))
    ours = penalised(jnp.asarray(logits), jnp.asarray(seen), PENALTY)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("vocabulary_first", [False, True])
def test_recorded_logprobs_are_those_of_the_model_without_the_penalty(vocabulary_first):
    """They are what the learner computes; TRL, too, trains on the log-probs of the model as it is."""
    rng = np.random.default_rng(2)
    logits, seen = rng.normal(size=(2, 3, 11)).astype(np.float32), rng.random((2, 3, 11)) < 0.5
    keys = row_keys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32), 3)
    sampling = SamplingParams(0.8, repetition_penalty=PENALTY)
    token, logprob = sample_tokens(
        keys, jnp.int32(0), logits, sampling, vocabulary_first=vocabulary_first, seen=jnp.asarray(seen)
    )
    full = jax.nn.log_softmax(jnp.asarray(logits) / 0.8)
    np.testing.assert_allclose(logprob, np.take_along_axis(full, token[..., None], -1)[..., 0], atol=2e-6)


@pytest.fixture(scope="module", autouse=True)
def _small_rings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_table, "_MIN_SLOTS", 8)
        patch.setattr(row_table, "_MIN_GROWTH", 8)
        yield


def sampler_of(tiny, segment, rows, sizes):
    return ContinuousBatchingSampler(
        tiny,
        VOCABULARY,
        SamplingParams(repetition_penalty=PENALTY),
        num_generations=G,
        max_completion_length=WIDTH,
        mesh=make_mesh(sizes),
        seed=0,
        segment=segment,
        rows=rows,
    )


def teacher_forced(tiny, params, rollout, keys, penalty):
    """[P,G,Tc]: each token as it is drawn from the logits after the tokens before it, penalised by transformers'
    formula for all that are in the prompt or before it in the completion."""
    width = TP + WIDTH
    ids = np.full((P, G, width), PAD)
    for p, n in enumerate(LENGTHS):
        ids[p, :, :n], ids[p, :, n : n + WIDTH] = TOKENS[p, :n], rollout.tokens[p]

    @jax.jit
    def logits_of(flat):
        hidden, _ = hidden_states(tiny, params, flat, jnp.arange(width)[None], whole_rows("xla"))
        return head_logits(tiny, params, hidden, REAL)

    logits = np.array(logits_of(ids.reshape(-1, width))).reshape(P, G, width, -1)
    before = np.array([n - 1 + np.arange(WIDTH) for n in LENGTHS])[:, None]  # [P,1,Tc]
    seen = np.cumsum(np.eye(logits.shape[-1], dtype=int)[ids], axis=2) > 0
    logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    logits = np.take_along_axis(logits, before[..., None], axis=2)  # [P,G,Tc,V]
    draw = lambda logits, t: sample_tokens(keys, t, logits, SamplingParams())[0]
    return np.asarray(jax.vmap(draw, (2, 0), 2)(jnp.asarray(logits), jnp.arange(WIDTH)))


def test_every_row_is_drawn_under_the_penalty_of_its_own_prompt_and_completion(tiny, tiny_params):
    """Rows leave, prompts come in their places and the table changes; what each row has seen moves with it. On a mesh
    that splits rows and vocabulary; each part of it holds three rows and waits with its second prompt."""
    sampler = sampler_of(tiny, segment=5, rows=6, sizes={"fsdp": 2, "tensor": 4})
    with jax.set_mesh(sampler.mesh):
        laid = jax.device_put(tiny_params, shardings(tiny_params, ROLLOUT_RULES, sampler.mesh))
        rollout = sampler(laid, PROMPTS, step=0)
    assert len(set(rollout.lengths.ravel())) > 3, "rows end at different times"
    keys = row_keys(sampler.step_key(0), jnp.asarray(PROMPTS.uids), G)
    drawn = np.arange(WIDTH) < rollout.lengths[..., None]
    by = lambda penalty: teacher_forced(tiny, tiny_params, rollout, keys, penalty)[drawn]
    np.testing.assert_array_equal(by(PENALTY), rollout.tokens[drawn])
    assert (by(1.0) != rollout.tokens[drawn]).any()


def test_without_a_penalty_rows_carry_no_further_state(tiny):
    """The same arrays and so the same programs as before there was a penalty."""
    state = lambda penalty: jax.eval_shape(
        lambda: empty_state(
            Decoder(tiny, VOCABULARY, SamplingParams(repetition_penalty=penalty)),
            TableSize(2, 3, 8),
            TP,
            jnp.dtype("float32"),
        )
    )
    assert state(1.0).seen is None
    assert state(1.1).seen.shape == (2, 3, tiny.vocab_size)


def test_the_memory_of_what_was_seen_is_counted(tiny):
    demand = functools.partial(
        Demand,
        cfg=tiny,
        dtype="float32",
        prompts=4,
        num_generations=8,
        max_completion_length=64,
        prompt_width=8,
    )
    plain, remembering = (demand(penalises_repetition=on) for on in (False, True))
    size = plain.size()
    assert remembering.peak_bytes(size) - plain.peak_bytes(size) >= 4 * 8 * tiny.vocab_size
