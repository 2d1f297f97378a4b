"""Each piece of the objective against NumPy in float64, and the whole against TRL's own code."""

import types
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learner.logprobs import Rows
from grpo_jax.learner.losses import clipped_policy_loss, importance_ratio, k3_divergence, row_weights
from grpo_jax.learner.objective import GRPO, SFT, Batch

B, TC = 6, 9
LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo"]


@pytest.fixture(scope="module")
def numbers():
    """Log-probs, old and reference ones, advantages of both signs, and a mask with one row wholly masked."""
    rng = np.random.default_rng(0)
    logprobs = rng.normal(-2, 1, (B, TC)).astype(np.float32)
    old = logprobs + rng.normal(0, 0.3, (B, TC)).astype(np.float32)  # many ratios outside 0.8 to 1.2
    ref = logprobs + rng.normal(0, 0.5, (B, TC)).astype(np.float32)
    advantages = np.array([1.3, -0.7, 0.0, 2.0, -1.5, 0.4], np.float32)
    mask = (np.arange(TC) < np.array([9, 4, 6, 1, 0, 7])[:, None]).astype(np.float32)
    return types.SimpleNamespace(l=logprobs, o=old, f=ref, A=advantages, m=mask)


def batch_of(numbers, ref=True, **changes):
    empty = jnp.zeros((B, 1), jnp.int32)
    rows = Rows(
        empty, empty[:, 0], jnp.zeros((B, TC), jnp.int32), jnp.asarray(changes.pop("mask", numbers.m))
    )
    given = {"old_logprobs": numbers.o, "ref_logprobs": numbers.f if ref else None} | changes
    return Batch(rows, jnp.asarray(numbers.A), **given)


def total(objective, logprobs, batch):
    """What the update minimises, as learner/update.py puts it together."""
    per_token, _ = objective.per_token(logprobs, batch)
    return (objective.weights(batch)[:, None] * batch.rows.mask * per_token).sum()


# ---- pieces


def test_ratio_and_its_neutral_value_under_the_mask(numbers):
    ratio = importance_ratio(numbers.l, numbers.o, numbers.m)
    wanted = np.where(numbers.m > 0, np.exp(numbers.l.astype(np.float64) - numbers.o), 1.0)
    np.testing.assert_allclose(ratio, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.19, 2.0, -2.38, -2.0),
        (1.31, 2.0, -2.6, 0.0),  # good and already likelier: held at 1 + eps_high
        (0.5, 2.0, -1.0, -2.0),  # good and become rarer: pulled back in full
        (1.31, -2.0, 2.62, 2.0),  # bad and become likelier: pushed down in full
        (0.5, -2.0, 1.6, 0.0),  # bad and already rarer: held at 1 - eps_low
        (0.81, -2.0, 1.62, 2.0),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_clip_holds_only_what_went_too_far_the_right_way(ratio, advantage, loss, slope):
    f = lambda r: clipped_policy_loss(r[None, None], jnp.asarray([advantage]), 0.2, 0.3)[0, 0]
    value, gradient = jax.value_and_grad(f)(jnp.float32(ratio))
    assert value == pytest.approx(loss, rel=1e-6)
    assert gradient == pytest.approx(slope, rel=1e-6)


def test_k3_is_exact_never_negative_and_zero_at_equality(numbers):
    gap = numbers.f.astype(np.float64) - numbers.l
    wanted = np.where(numbers.m > 0, np.exp(gap) - gap - 1, 0.0)
    np.testing.assert_allclose(k3_divergence(numbers.l, numbers.f, numbers.m), wanted, rtol=1e-4, atol=1e-7)
    assert not np.any(k3_divergence(numbers.l, numbers.l, numbers.m))


def test_k3_of_nearly_equal_policies_survives_float32():
    """exp(x) - x - 1 in float32 is noise below x = 1e-3, negative half the time."""
    gap = np.float32([1e-2, 1e-3, -1e-3, 3e-4])
    found = k3_divergence(jnp.zeros((1, 4)), gap[None], jnp.ones((1, 4)))[0]
    assert (np.asarray(found) >= 0).all()
    np.testing.assert_allclose(found, np.expm1(gap.astype(np.float64)) - gap, rtol=1e-3)


def test_row_weights_by_hand():
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    weigh = lambda kind, **more: np.asarray(row_weights(jnp.asarray(mask), kind, 5, **more))
    np.testing.assert_allclose(weigh("grpo"), [1 / 9, 1 / 3, 1 / 3])  # a row's mean, then the mean of three
    np.testing.assert_allclose(weigh("bnpo"), [1 / 4] * 3)
    np.testing.assert_allclose(weigh("dr_grpo"), [1 / 15] * 3)
    np.testing.assert_allclose(weigh("dapo", mean_tokens=jnp.float32(8)), [1 / 8] * 3)
    np.testing.assert_allclose(weigh("dapo"), [1 / 4] * 3)


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_weights_of_a_batch_without_tokens_are_finite(kind):
    assert np.isfinite(row_weights(jnp.zeros((3, 4)), kind, 5)).all()


# ---- masked places


@pytest.mark.parametrize("kind", LOSS_TYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e4, -1e4])
def test_nothing_under_the_mask_reaches_value_or_gradient(numbers, kind, poison):
    """Padding scored as minus infinity, stale log-probs, an empty row: all of it must be as if it were not."""
    masked = numbers.m == 0
    objective = GRPO(kind, beta=0.1, max_length=TC)
    clean = jax.value_and_grad(lambda x: total(objective, x, batch_of(numbers)))(jnp.asarray(numbers.l))
    dirty = batch_of(
        numbers,
        old_logprobs=np.where(masked, poison, numbers.o),
        ref_logprobs=np.where(masked, poison, numbers.f),
    )
    value, gradient = jax.value_and_grad(lambda x: total(objective, x, dirty))(jnp.asarray(numbers.l))
    assert value == clean[0]
    np.testing.assert_array_equal(gradient, clean[1])
    assert not np.any(np.asarray(gradient)[masked])


def test_a_wholly_masked_batch_is_zero_and_not_nan(numbers):
    batch = batch_of(numbers, mask=np.zeros((B, TC), np.float32))
    for kind in LOSS_TYPES:
        f = lambda x, kind=kind: total(GRPO(kind, beta=0.1, max_length=TC), x, batch)
        value, gradient = jax.value_and_grad(f)(jnp.asarray(numbers.l))
        assert value == 0
        assert not np.any(gradient)


# ---- the whole


def test_first_update_has_ratio_one_and_the_policy_gradient(numbers):
    """Without old log-probs the ratio is exactly 1, its gradient that of the log-prob."""
    batch = batch_of(numbers, ref=False, old_logprobs=None)
    loss, means = GRPO("bnpo").per_token(jnp.asarray(numbers.l), batch)
    np.testing.assert_array_equal(loss, np.broadcast_to(-numbers.A[:, None], (B, TC)))
    assert not any(np.any(value) for value in means.values())
    gradient = jax.grad(lambda x: total(GRPO("bnpo"), x, batch))(jnp.asarray(numbers.l))
    np.testing.assert_allclose(gradient, -numbers.A[:, None] * numbers.m / numbers.m.sum(), rtol=1e-6)


def test_every_token_counts_the_end_of_sequence_included(numbers):
    """The mask's last 1 of a row is the end-of-sequence token: stopping must be learnt like any other action."""
    batch = batch_of(numbers, ref=False, old_logprobs=None)
    gradient = np.asarray(jax.grad(lambda x: total(GRPO(), x, batch))(jnp.asarray(numbers.l)))
    last = numbers.m.sum(1).astype(int) - 1
    for row in np.flatnonzero((last >= 0) & (numbers.A != 0)):
        assert gradient[row, last[row]] != 0


def test_sft_is_the_mean_negative_loglikelihood(numbers):
    batch = batch_of(numbers, ref=False, old_logprobs=None)
    wanted = -(numbers.l * numbers.m).sum() / numbers.m.sum()
    assert total(SFT(), jnp.asarray(numbers.l), batch) == pytest.approx(wanted, rel=1e-6)


def trl_loss(numbers, kind, beta, bias_correction, tokens):
    """TRL's own `_compute_loss` with the model's part replaced by given log-probs; loss, gradient, metrics."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").GRPOTrainer
    logprobs = torch.tensor(numbers.l, requires_grad=True)
    whole = types.SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x
    )
    stand_in = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(B, TC), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=kind,
        epsilon_low=0.2,
        epsilon_high=0.3,
        max_completion_length=TC + 2,
        use_vllm=False,
        model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(
            use_bias_correction_kl=bias_correction, delta=None, steps_per_generation=2
        ),
        current_gradient_accumulation_steps=1,
        accelerator=whole,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, TC, dtype=torch.long),
        "completion_mask": torch.tensor(numbers.m),
        "advantages": torch.tensor(numbers.A),
        "old_per_token_logps": torch.tensor(numbers.o),
        "ref_per_token_logps": torch.tensor(numbers.f),
        "num_items_in_batch": torch.tensor(tokens),
    }
    loss = trainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    return float(loss), logprobs.grad.numpy(), stand_in._metrics["train"]


@pytest.mark.parametrize("kind", LOSS_TYPES)
@pytest.mark.parametrize(("beta", "bias_correction"), [(0.0, True), (0.1, True), (0.1, False)])
def test_value_gradient_and_metrics_equal_trl(numbers, kind, beta, bias_correction):
    """This batch is one of two updates of a rollout of 60 tokens; dapo divides by the rollout's share, 30."""
    objective = GRPO(kind, 0.2, 0.3, beta, bias_correction, max_length=TC + 2)
    batch = batch_of(numbers, ref=beta > 0, mean_tokens=jnp.float32(30))
    value, gradient = jax.value_and_grad(lambda x: total(objective, x, batch))(jnp.asarray(numbers.l))
    their_value, their_gradient, their_metrics = trl_loss(numbers, kind, beta, bias_correction, 60.0)
    assert float(value) == pytest.approx(their_value, abs=1e-6)
    scale = np.abs(their_gradient).max()
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-5, atol=1e-6 * scale)

    _, means = objective.per_token(jnp.asarray(numbers.l), batch)
    assert set(means) <= set(their_metrics)
    for name, values in means.items():
        ours = float((values * batch.rows.mask).sum() / batch.rows.mask.sum())
        assert ours == pytest.approx(their_metrics[name][0], abs=1e-6), name
    assert float(np.mean(np.asarray(means["clip_ratio/region_mean"]))) > 0  # the case must exercise the clip
