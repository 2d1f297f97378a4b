"""The learner as the trainer uses it: how many passes over the model a rollout costs, and which rows they see."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.learner import logprobs
from grpo_jax.learner.batches import Passes, minibatches
from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer
from grpo_jax.learner.reference_sync import ReferenceSync
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.attention import shared_prompt
from grpo_jax.rollout.programs import Rollout

pytestmark = pytest.mark.usefixtures("one_device")

P, G, TP, TC, REAL = 4, 4, 5, 20, 37
# A large epsilon: Adam otherwise takes whole steps in the direction of rounding noise where gradients are nearly 0.
OPTIMIZER = make_optimizer(Schedule(1e-2, "constant", 0, 10), epsilon=1e-2)
DEFAULT, ONE_PASS = GRPO(max_length=TC), Passes()
WITH_REFERENCE, REINFORCE = GRPO(beta=0.1, max_length=TC), GRPO("reinforce")
LOGPROB_SETTINGS = LogprobSettings(num_tokens=REAL, chunk=64)


class PromptBatchArrays(NamedTuple):
    tokens: np.ndarray
    lengths: np.ndarray


class Groups(NamedTuple):
    batch: PromptBatchArrays
    rollout: Rollout
    on_policy: np.ndarray


@pytest.fixture(scope="module")
def groups():
    """Completions of up to 12 tokens, so that they are cut from 20 to 16; some are cut off unfinished."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, (P, G)).astype(np.int32)
    there = np.arange(TC) < lengths[..., None]
    prompts = PromptBatchArrays(rng.integers(0, REAL, (P, TP), np.int32), np.array([5, 2, 3, 1], np.int32))
    rollout = Rollout.of_policy(
        rng.integers(0, REAL, (P, G, TC), np.int32),
        np.where(there, rng.normal(-2, 1, (P, G, TC)), 0).astype(np.float32),
        lengths,
        rng.random((P, G)) < 0.7,
    )
    return Groups(prompts, rollout, np.ones(P, bool))


def with_rollout(groups, **changes):
    return groups._replace(rollout=dataclasses.replace(groups.rollout, **changes))


@pytest.fixture
def advantages():
    """Prompts 1 and 2 have no spread: eight rows of sixteen can change the weights."""
    return np.random.default_rng(1).normal(size=(P, G)).astype(np.float32) * np.array([[1], [0], [0], [1]])


@pytest.fixture(scope="module")
def all_passes():
    """A list that gets the shape [B,T] of every pass over the model that is really run."""
    seen, original = [], logprobs.hidden_states

    def counted(cfg, params, tokens, *given, **named):
        jax.debug.callback(lambda: seen.append(tokens.shape))
        return original(cfg, params, tokens, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "hidden_states", counted)
        yield seen


@pytest.fixture
def passes_over_model(all_passes):
    """`passes_over_model()`: the shapes of this test's passes."""
    jax.effects_barrier()
    all_passes.clear()

    def seen():
        jax.effects_barrier()
        return list(all_passes)

    return seen


@pytest.fixture(scope="module")
def learn(all_passes, tiny, tiny_params, mesh_1):
    """`learn(objective, passes)`: a learner with a reference where it needs one, and its first state. Equal arguments
    give the same learner, so that its programs compile once; `new` gives another."""
    fresh = lambda: jax.tree.map(jax.numpy.copy, tiny_params)

    def make(objective, passes, logprob_settings, optimizer, reference_on_host, sync):
        learner = Learner(
            cfg=tiny,
            objective=objective,
            logprob_settings=logprob_settings,
            optimizer=optimizer,
            passes=passes,
            shape=(P, G),
            mesh=mesh_1,
            reference_on_host=reference_on_host,
            sync=sync,
        )
        if objective.beta > 0 and sync is None:
            learner.set_reference(fresh())
        return learner

    shared = functools.cache(make)

    def get(
        objective=DEFAULT,
        passes=ONE_PASS,
        logprob_settings=LOGPROB_SETTINGS,
        optimizer=OPTIMIZER,
        reference_on_host=False,
        new=False,
        sync=None,
    ):
        given = objective, passes, logprob_settings, optimizer, reference_on_host, sync
        learner = (make if new else shared)(*given)
        return learner, learner.init(fresh())

    return get


@pytest.mark.parametrize(
    ("objective", "passes", "rows"),
    [
        (DEFAULT, Passes(), [16]),  # the default: one pass, forward and backward
        (DEFAULT, Passes(micro_batch_size=4), [4, 4]),  # half of the micro-batches have nothing to learn
        (DEFAULT, Passes(micro_batch_size=4, skip_zero_advantages=False), [4] * 4),
        (WITH_REFERENCE, Passes(), [16, 16]),
        (WITH_REFERENCE, Passes(micro_batch_size=8), [8] * 4),  # the divergence acts on all rows
        (DEFAULT, Passes(num_iterations=2), [16, 16, 16]),  # old log-probs, and two updates
        (DEFAULT, Passes(num_minibatches=2), [8] * 4),
        (DEFAULT, Passes(num_iterations=2, micro_batch_size=4), [4] * 6),  # nor old log-probs of skipped rows
        (GRPO(bonus=EntropyBonus(0.1)), Passes(micro_batch_size=8), [8, 8]),  # from the same pass
        (GRPO(top_entropy_quantile=0.3), Passes(), [16]),
        (
            GRPO(top_entropy_quantile=0.3),
            Passes(micro_batch_size=8),
            [8] * 3,
        ),  # all entropies, then one update
        (REINFORCE, Passes(gradient_samples=1), [4]),  # the others are only its baseline
        (GRPO(sampler_mode="token_truncate", off_policy_threshold=0.1), Passes(), [16]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_rollout_costs_only_the_passes_that_its_settings_need(
    learn, passes_over_model, groups, advantages, objective, passes, rows
):
    learner, state = learn(objective, passes)
    _, metrics = learner(state, groups, advantages)
    assert [shape[0] for shape in passes_over_model()] == rows
    assert metrics["grad_norm"] > 0


def test_a_rollout_without_any_advantage_costs_no_pass(learn, passes_over_model, groups):
    learner, state = learn(passes=Passes(micro_batch_size=4))
    _, metrics = learner(state, groups, np.zeros((P, G), np.float32))
    assert passes_over_model() == []
    assert metrics["grad_norm"] == metrics["loss"] == 0
    assert metrics["clip_ratio/region_mean"] == 0
    assert np.isnan(metrics["sampling/importance_sampling_ratio/mean"])  # 0 would look like a mismatch


@pytest.mark.parametrize(
    ("loss_type", "passes"),
    [  # the means that differ if skipped rows are forgotten: of rows, of the rollout's tokens, of the mini-batch's
        ("grpo", [Passes(micro_batch_size=4)]),
        ("dapo", [Passes(micro_batch_size=4), Passes(micro_batch_size=4, skip_zero_advantages=False)]),
        ("bnpo", [Passes(micro_batch_size=4)]),
    ],
)
def test_skipping_rows_without_advantage_changes_no_parameter(learn, groups, advantages, loss_type, passes):
    """The same normaliser: rows that are not computed still count in every mean."""
    objective = GRPO(loss_type, max_length=TC)
    after = []
    for each in (Passes(), *passes):
        learner, state = learn(objective, each)
        after.append(learner(state, groups, advantages))
    for state, metrics in after[1:]:
        assert metrics["loss"] == pytest.approx(after[0][1]["loss"], abs=1e-6)
        assert metrics["grad_norm"] == pytest.approx(after[0][1]["grad_norm"], rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, after[0][0].params
        )


def test_each_row_is_in_one_minibatch_and_rows_with_advantage_come_first(groups, advantages):
    passes = Passes(num_minibatches=2, micro_batch_size=2)
    parts = minibatches(groups, advantages, passes, skip=True)
    rows = [part.tokens[b].tobytes() for part in parts for b in range(8)]
    whole = groups.rollout.tokens[..., :16].reshape(P * G, 16)
    assert sorted(rows) == sorted(row.tobytes() for row in whole)
    for part in parts:
        acts = part.advantages != 0
        first = [
            b for m in range(int(part.ends[-1])) for b in range(m, 8, 4)
        ]  # micro-batch m takes b % 4 == m
        assert acts.sum() == acts[first].sum() == 4
        assert part.ends.tolist() == [2]


def _named(value):
    """A case's id: its settings that are not the default ones."""
    if not isinstance(value, Passes):
        return str(value)
    return ",".join(f"{k}={v}" for k, v in dataclasses.asdict(value).items() if v != getattr(ONE_PASS, k))


@pytest.mark.parametrize(
    ("beta", "passes"),
    [  # without beta rows that have no advantage are skipped
        (0.0, Passes(share_prompts=True)),
        (0.0, Passes(share_prompts=True, micro_batch_size=2)),  # a group over two micro-batches
        (0.0, Passes(share_prompts=True, num_minibatches=2, micro_batch_size=4, num_iterations=2)),
        (0.1, Passes(length_buckets=3, share_prompts=True, micro_batch_size=4)),
        (0.0, Passes(length_buckets=2, micro_batch_size=4, num_iterations=2, skip_zero_advantages=False)),
        (0.0, Passes(length_buckets=3, micro_batch_size=4)),
    ],
    ids=_named,
)
def test_shared_prompts_and_length_buckets_change_no_update(learn, groups, advantages, passes, beta):
    objective = GRPO(beta=beta, max_length=TC, bonus=EntropyBonus(0.05 * (beta > 0)))
    plain = dataclasses.replace(passes, share_prompts=False, length_buckets=1)
    after = []
    for each in (plain, passes):
        learner, state = learn(objective, each)
        assert learner.rows_together == (
            min(4 // each.num_minibatches, each.micro_batch_size or 4) if each.share_prompts else 1
        )
        after.append(learner(state, groups, advantages))
    (one, usual), (other, found) = after
    assert found == pytest.approx(usual, rel=1e-4, abs=2e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params)):
        np.testing.assert_allclose(b, a, atol=2e-5)


def test_a_shared_prompt_is_computed_once_and_short_rows_in_short_programs(
    learn, passes_over_model, groups, advantages
):
    """Tokens that the model sees: P + G C of a prompt in place of G (P + C), with C as long as the rows are."""
    lengths = np.where(np.arange(P)[:, None] < 2, 4, 9) * np.ones((P, G), int)
    short = with_rollout(groups, lengths=lengths, action_mask=np.arange(TC) < lengths[..., None])
    passes = Passes(length_buckets=3, share_prompts=True, micro_batch_size=4, skip_zero_advantages=False)
    learner, state = learn(passes=passes)
    learner._checked = True  # the check is a pass of its own
    learner(state, short, advantages)
    assert passes_over_model() == [(1, 5 + 4 * 4)] * 2 + [(1, 5 + 4 * 16)] * 2


def test_a_wrongly_shared_prompt_is_refused_before_the_first_update(learn, monkeypatch, groups, advantages):
    learner, state = learn(passes=Passes(share_prompts=True), new=True)
    wrong = lambda width, samples, lengths, kernel: shared_prompt(width, samples, lengths + 1, kernel)
    monkeypatch.setattr(logprobs, "shared_prompt", wrong)
    with pytest.raises(UserError, match="share_prompts = true: log-probs differ by"):
        learner(state, groups, advantages)


def test_truncated_completions_are_masked_and_left_out_of_the_normaliser(groups, advantages):
    (part,) = minibatches(groups, advantages, Passes(mask_truncated=True), skip=False)
    finished = groups.rollout.finished.reshape(-1)
    np.testing.assert_array_equal(part.mask.sum(1), groups.rollout.lengths.reshape(-1) * finished)
    assert part.mean_tokens == part.mask.sum()
    assert not finished.all()


@pytest.mark.parametrize("gradient_samples", [0, 2])
def test_each_mini_batch_is_normalised_by_its_share_of_the_rollouts_tokens(
    groups, advantages, gradient_samples
):
    """As TRL's num_items_in_batch: so dapo's updates of a rollout have equal sizes, whatever rows they got."""
    passes = Passes(num_minibatches=2, gradient_samples=gradient_samples)
    parts = minibatches(groups, advantages, passes, skip=False)
    tokens = sum(part.mask.sum() for part in parts)
    assert len({part.mask.sum() for part in parts}) == 2, "of unequal sizes"
    assert [part.mean_tokens for part in parts] == [pytest.approx(tokens / 2)] * 2


def test_only_the_first_samples_carry_gradient(learn, groups, advantages):
    """With gradient_samples = 1 neither tokens nor advantages of the other samples change the update."""
    learner, state = learn(REINFORCE, Passes(gradient_samples=1))
    other = with_rollout(groups, tokens=np.where(np.arange(G)[:, None] > 0, 1, groups.rollout.tokens))
    noise = advantages + np.where(np.arange(G) > 0, 5.0, 0.0)
    first, _ = learner(state, groups, advantages)
    learner, state = learn(REINFORCE, Passes(gradient_samples=1))
    second, _ = learner(state, other, noise)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_carried_over_groups_take_their_ratio_to_the_samplers_logprobs(learn, groups, advantages):
    """A group of the step before: its ratio is that to the weights that sampled it, and so it is clipped."""
    metrics = []
    for on_policy in (None, np.ones(P, bool), np.array([False, True, True, True])):
        learner, state = learn(passes=Passes(carries_over=on_policy is not None))
        metrics.append(learner(state, groups._replace(on_policy=on_policy), advantages)[1])
    assert metrics[0]["clip_ratio/region_mean"] == metrics[1]["clip_ratio/region_mean"] == 0
    assert metrics[0]["loss"] == metrics[1]["loss"]
    assert metrics[2]["clip_ratio/region_mean"] > 0  # the sampler's log-probs here are noise
    gap = "sampling/sampling_logp_difference/mean"
    assert metrics[2][gap] != metrics[1][gap] == metrics[0][gap]  # a carried-over group's gap is no mismatch


@pytest.mark.parametrize(
    "saving",
    [
        {"reference_on_host": True},
        {"logprob_settings": dataclasses.replace(LOGPROB_SETTINGS, remat="offload")},
    ],
    ids=lambda saving: next(iter(saving)),
)
def test_offloading_to_the_host_gives_the_same_weights(learn, groups, advantages, saving):
    objective, passes = WITH_REFERENCE, Passes(micro_batch_size=8, num_iterations=2)
    (plain, one), (sparing, other) = learn(objective, passes), learn(objective, passes, **saving)
    one, usual = plain(one, groups, advantages)
    other, metrics = sparing(other, groups, advantages)
    assert metrics == pytest.approx(usual, rel=1e-6, abs=1e-9)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    matrix = sparing.reference["layers"]["gate"]["kernel"]
    assert matrix.sharding.memory_kind == ("pinned_host" if "reference_on_host" in saving else "device")


def test_a_reference_follows_the_policy_as_trls_callback_moves_it(learn, groups, advantages, monkeypatch):
    """Two updates a rollout and a synchronisation after the third: the log-probs of a rollout are by the reference as
    it was when the rollout's first update began, as in TRL."""
    torch = pytest.importorskip("torch")
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    learner, state = learn(
        WITH_REFERENCE, Passes(num_iterations=2), sync=ReferenceSync(0.6, 3, "float32"), new=True
    )
    arrays = lambda params: [np.array(x) for x in jax.tree.leaves(params)]
    start, updated, logprobs = arrays(state.reference), [], []
    update = learner.update

    def recorded(state, batch, base):
        state, metrics = update(state, batch, base)
        updated.append(arrays(state.params))
        logprobs.append(np.array(batch.ref_logprobs))
        return state, metrics

    monkeypatch.setattr(learner, "update", recorded)
    for _ in range(3):
        state, _ = learner(state, groups, advantages)
        if len(updated) == 2:
            assert all(map(np.array_equal, arrays(state.reference), start))
        reference = arrays(state.reference) if len(updated) == 4 else []
        if reference:
            policy, theirs = (torch.nn.ParameterList(map(torch.tensor, x)) for x in (updated[2], start))
            callbacks.SyncRefModelCallback._sync_target_model(policy, theirs, 0.6)
            for ours, expected in zip(reference, theirs, strict=True):
                np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-6, atol=1e-8)
    assert np.array_equal(logprobs[0], logprobs[3])
    assert not np.array_equal(logprobs[0], logprobs[4])


def test_moments_in_bfloat16_take_half_the_memory_and_nearly_the_same_steps(learn, groups, advantages):
    compact = make_optimizer(Schedule(1e-2, "constant", 0, 10), epsilon=1e-2, compact=True)
    passes = Passes(num_iterations=2)
    (plain, one), (sparing, other) = learn(passes=passes), learn(passes=passes, optimizer=compact)
    before = jax.tree.map(np.asarray, one.params)
    size = lambda state: sum(x.nbytes for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert size(other) == size(one) / 2
    (one, _), (other, _) = plain(one, groups, advantages), sparing(other, groups, advantages)
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    moved = norm(jax.tree.map(np.subtract, one.params, before))
    assert 0 < norm(jax.tree.map(np.subtract, one.params, other.params)) < 0.01 * moved


def test_divergence_in_the_reward_is_that_of_the_sampler_from_the_reference(learn, groups, tiny_params):
    learner, _ = learn(GRPO(kl_estimator="k1"), Passes(micro_batch_size=4, gradient_samples=1))
    learner.set_reference(jax.tree.map(jax.numpy.copy, tiny_params))
    found = learner.divergence(groups)
    assert found.shape == (P, G, TC)
    there = np.arange(TC) < groups.rollout.lengths[..., None]
    assert not found[~there].any()
    flat = lambda x: np.repeat(x, G, axis=0)
    mask = there.reshape(P * G, TC).astype(np.float32)
    rows = learner.rows(
        flat(groups.batch.tokens),
        flat(groups.batch.lengths),
        groups.rollout.tokens.reshape(P * G, TC),
        mask,
    )
    reference = np.asarray(learner.score_rollout(tiny_params, rows)).reshape(P, G, TC)
    np.testing.assert_allclose(found, np.where(there, groups.rollout.logprobs - reference, 0), atol=2e-5)


def test_an_adaptive_bonus_moves_its_coefficient_at_every_update(learn, groups, advantages):
    bonus = EntropyBonus(0.1, adaptive=True, target=100.0, step=0.02)
    learner, state = learn(GRPO(bonus=bonus), Passes(num_iterations=3))
    assert float(state.entropy.coef) == np.float32(0.1)
    state, metrics = learner(state, groups, advantages)
    assert float(state.entropy.coef) == metrics["entropy_coef"] == pytest.approx(0.16)
    assert 0 < float(state.entropy.last) < np.log(REAL)


# ---- tokens that the policy did not choose ----


@pytest.fixture
def environment_groups(groups):
    """Groups in which an environment wrote about a third of the tokens. Each row has a token of the policy; some rows
    end with one of the environment."""
    rng = np.random.default_rng(3)
    mask = groups.rollout.action_mask & (rng.random((P, G, TC)) < 0.65)
    mask[..., 0] = True
    assert (mask.sum(-1) < groups.rollout.lengths).any()
    return with_rollout(groups, action_mask=mask)


EVERYTHING = GRPO(
    "grpo",
    beta=0.1,
    max_length=TC,
    bonus=EntropyBonus(0.01),
    top_entropy_quantile=0.5,
    off_policy_threshold=1.0,
)


@pytest.mark.parametrize("objective", [WITH_REFERENCE, EVERYTHING], ids=["dapo", "everything"])
def test_logprobs_and_advantages_of_environment_tokens_are_ignored(learn, environment_groups, objective):
    """They change neither the weights nor a metric."""
    rng, mask = np.random.default_rng(4), environment_groups.rollout.action_mask
    advantages = rng.normal(size=(P, G, TC)).astype(np.float32)
    noise = np.where(mask, 0, rng.normal(size=(P, G, TC))).astype(np.float32)
    noisy = with_rollout(environment_groups, logprobs=environment_groups.rollout.logprobs + noise)
    after = []
    for groups, given in ((environment_groups, advantages), (noisy, advantages + noise)):
        learner, state = learn(objective, Passes(num_iterations=2, micro_batch_size=8))
        after.append(learner(state, groups, given))
    (one, metrics), (other, others) = after
    assert metrics == others
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_environment_tokens_are_context_for_later_tokens_of_the_policy(learn, environment_groups, advantages):
    """Tokens after the last one of the policy change nothing."""
    mask = environment_groups.rollout.action_mask
    seen = np.flip(np.cumsum(np.flip(mask, -1), -1), -1) > 0  # in front of the last token of the policy
    assert (seen & ~mask).any()
    losses = []
    for where in (seen & ~mask, ~seen):
        tokens = np.where(
            where, (environment_groups.rollout.tokens + 1) % REAL, environment_groups.rollout.tokens
        )
        learner, state = learn(REINFORCE)
        losses.append(learner(state, with_rollout(environment_groups, tokens=tokens), advantages)[1]["loss"])
    learner, state = learn(REINFORCE)
    assert losses[0] != learner(state, environment_groups, advantages)[1]["loss"] == losses[1]


def test_a_rows_width_reaches_to_the_last_token_of_the_policy(environment_groups, advantages):
    """Few tokens of the policy make a long row if the environment wrote many between them."""
    mask = np.zeros((P, G, TC), bool)
    mask[..., [0, 11]] = True
    long = with_rollout(environment_groups, lengths=np.full((P, G), 12, np.int32), action_mask=mask)
    (part,) = minibatches(long, advantages, Passes(length_buckets=3, micro_batch_size=4), skip=False)
    assert part.ends.tolist() == [0, 0, 4]
    assert part.mask.sum() == 2 * P * G


def test_divergence_of_environment_tokens_is_left_out_of_the_reward(learn, environment_groups, tiny_params):
    learner, _ = learn(GRPO(kl_estimator="k2"), Passes(micro_batch_size=4))
    learner.set_reference(jax.tree.map(jax.numpy.copy, tiny_params))
    plain = np.arange(TC) < environment_groups.rollout.lengths[..., None]
    whole = learner.divergence(with_rollout(environment_groups, action_mask=plain))
    np.testing.assert_array_equal(
        learner.divergence(environment_groups), np.where(environment_groups.rollout.action_mask, whole, 0)
    )
